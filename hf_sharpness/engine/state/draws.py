"""Iterators that passes draw from (``next(self.unlabelled)``): further passes get what the first one drew."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from .copies import copied
from .holders import Content, Elements, Holder, Names


class Randomness(Protocol):
    """Where random generators stand."""

    def restore(self) -> None:
        """Set them back to that."""


class Draw(NamedTuple):
    """What an iterator gave.

    Attributes:
        value: the element.
        ended: there was none: it came to its end.
        left: the random generators after it was made; None if that is past.
    """

    value: Any
    ended: bool
    left: Randomness | None


class Draws:
    """Stands in for an iterator while the passes of a step are made.

    Args:
        iterator: the iterator.
        randomness: notes where random generators stand.

    Attributes:
        place: how many of the elements drawn in this step the pass under way has got.
    """

    def __init__(self, iterator: Any, randomness: Callable[[], Randomness]) -> None:
        self.iterator = iterator
        self.randomness = randomness
        self.drawn: list[Draw] = []
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._draw(lambda: next(self.iterator))

    def send(self, value: Any) -> Any:
        """A generator's."""
        return self._draw(lambda: self.iterator.send(value))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "iterator":
            raise AttributeError(name)
        return getattr(self.iterator, name)

    def _draw(self, draw: Callable[[], Any]) -> Any:
        if self.place < len(self.drawn):
            known = self.drawn[self.place]
            self.place += 1
            if known.left is not None:
                known.left.restore()
            if known.ended:
                raise StopIteration
            return copied(known.value)
        value, ended = None, False
        try:
            value = draw()
        except StopIteration:
            ended = True
        self.drawn.append(Draw(copied(value), ended, self.randomness()))
        self.place += 1
        if ended:
            raise StopIteration
        return value

    def settle(self) -> Any:
        """The step is over: the iterator; or this, where further passes have drawn more than the first ones did."""
        left = self.drawn[self.place :]
        if not left:
            return self.iterator
        self.drawn, self.place = [draw._replace(left=None) for draw in left], 0
        return self


class LongDraws(Draws):
    """The same for an iterator that says how long it is, as a data loader's does."""

    def __len__(self) -> int:
        return len(self.iterator)


class StandIns:
    """The stand-ins in place, each with the object that holds it.

    Args:
        randomness: notes where random generators stand.
    """

    def __init__(self, randomness: Callable[[], Randomness]) -> None:
        self.randomness = randomness
        self.by_iterator: dict[int, Draws] = {}
        self.places: list[tuple[Holder, Any]] = []

    def put(self, contents: Iterable[tuple[Holder, Content]], iterators: list[Any]) -> list[tuple[Draws, int]]:
        """Have iterators stood in for.

        Args:
            contents: holders with what they hold, in which the iterators are replaced as well.
            iterators: those that were found.

        Returns:
            All stand-ins, each with its place.
        """
        if iterators:
            wanted = {id(iterator) for iterator in iterators}
            for holder, content in contents:
                for name, value in _items(holder, content):
                    if id(_drawn_from(value)) in wanted or _holds(value, wanted):
                        content[name] = stand_in = self._stand_in(value, wanted)
                        _set(holder, name, stand_in)
                        self.places.append((holder, stand_in))
        return [(draws, draws.place) for draws in self.by_iterator.values()]

    def _stand_in(self, value: Any, wanted: set[int]) -> Any:
        """For an iterator, its ``__next__``, or a tuple that holds some; anything else in it as it is."""
        if _holds(value, wanted):
            return tuple(self._stand_in(element, wanted) for element in value)
        iterator = _drawn_from(value)
        if id(iterator) not in wanted:
            return value
        return self._of(iterator) if iterator is value else self._of(iterator).__next__

    def _of(self, iterator: Any) -> Draws:
        if isinstance(iterator, Draws):  # left from an earlier step, or from one that is taken anew
            return self.by_iterator.setdefault(id(iterator.iterator), iterator)
        if id(iterator) not in self.by_iterator:
            kind = LongDraws if hasattr(type(iterator), "__len__") else Draws
            self.by_iterator[id(iterator)] = kind(iterator, self.randomness)
        return self.by_iterator[id(iterator)]

    def take_away(self) -> None:
        """The step is over: the iterators are in their places again."""
        places, known = self.places, self.by_iterator
        self.places, self.by_iterator = [], {}
        settled = {id(draws): draws.settle() for draws in known.values()}
        for holder, stand_in in places:
            for name, value in _items(holder, holder.take()):
                if value is stand_in:
                    _set(holder, name, _settled(value, settled))


def _holds(value: Any, wanted: set[int]) -> bool:
    """Whether a value is a tuple with iterators in it, or in tuples in it."""
    return type(value) is tuple and any(
        id(_drawn_from(element)) in wanted or _holds(element, wanted) for element in value
    )


def _drawn_from(value: Any) -> Any:
    """The iterator that a ``__next__`` belongs to; anything else as it is."""
    is_a_method = type(value) in (types.MethodWrapperType, types.MethodType)
    return value.__self__ if is_a_method and getattr(value, "__name__", "") == "__next__" else value


def _settled(value: Any, settled: dict[int, Any]) -> Any:
    if type(value) is tuple:
        return tuple(_settled(element, settled) for element in value)
    iterator = _drawn_from(value)
    found = settled.get(id(iterator), iterator)
    return found if iterator is value else value if found is iterator else found.__next__


def _items(holder: Holder, content: Content) -> list[tuple[Any, Any]]:
    if isinstance(holder, Names):
        return [(name, value) for name, value in content.items() if name not in holder.skip]
    is_list = isinstance(holder, Elements) and type(content) is list and isinstance(holder.target, list)
    return list(enumerate(content)) if is_list else []


def _set(holder: Holder, name: Any, value: Any) -> None:
    if isinstance(holder, Names):
        holder.set(name, value)
    else:
        list.__setitem__(holder.target, name, value)
