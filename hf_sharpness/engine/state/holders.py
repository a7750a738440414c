"""Python objects that hold state: what they hold is noted, and put back into the same object.

Nothing here calls the user's code: values are compared by identity, and objects are read and written through the
methods of the built-in types.
"""

from __future__ import annotations

import types
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from operator import is_
from typing import Any

LONGEST = 10_000
"""Lists and dicts of more elements are data or a long record: of a list the length is noted, so that what was appended
can be told, until one is seen to change in another way."""

Content = Any
"""What a holder held, as ``Holder.take`` returns it."""


class Holder:
    """An object whose contents a pass may change.

    Args:
        target: the object.
    """

    __slots__ = ("target",)

    def __init__(self, target: Any) -> None:
        self.target = target

    def take(self) -> Content:
        """What it holds now, by reference."""
        raise NotImplementedError

    def put(self, content: Content, left_alone: LeftAlone) -> None:
        """Make it hold that again."""
        raise NotImplementedError


class LeftAlone:
    """Names in holders that are not put back.

    A flag guards what is to happen once (a message, an initialisation that depends on data), so it takes more than
    another value to put it back. See ``Flags``.
    """

    def skips(self, holder: Names, name: Any, value: Any, current: Any) -> bool:
        """Whether ``holder`` keeps ``current`` under that name instead of ``value``. Either may be MISSING."""
        return False


MISSING = object()


class Names(Holder):
    """Names and values: an instance's ``__dict__``, a dict, a module's buffers.

    Args:
        target: the dict.
        skip: names that are never put back.
        is_dict: whether it is a dict of the user's, and no object's attributes.
        is_librarys: whether it holds the attributes of an installed library's module.
    """

    __slots__ = ("is_dict", "is_librarys", "skip")

    def __init__(
        self, target: Any, skip: frozenset[str] = frozenset(), is_dict: bool = False, is_librarys: bool = False
    ) -> None:
        super().__init__(target)
        self.skip = skip
        self.is_dict = is_dict
        self.is_librarys = is_librarys

    def take(self) -> Content:
        return dict(self.target) if type(self.target) is dict else dict(self.items())

    def put(self, content: Content, left_alone: LeftAlone) -> None:
        for name, value, current in self.changes(content):
            if not left_alone.skips(self, name, value, current):
                if value is MISSING:
                    self.delete(name)
                else:
                    self.set(name, value)
        if self.is_dict:
            self._order_as(content)

    def _order_as(self, content: Content) -> None:
        """A dict may be a queue: what a pass has thrown out of it comes back where it was, and not last."""
        kind = self._kind()
        if all(map(is_, kind.__iter__(self.target), content)):
            return
        for name in [name for name in content if kind.__contains__(self.target, name)]:
            value = kind.__getitem__(self.target, name)
            self.delete(name)
            self.set(name, value)

    def changes(self, content: Content) -> list[tuple[Any, Any, Any]]:
        """For every name that holds another value than in ``content``: the name, that value, the present one."""
        now = self.take()
        if len(now) == len(content) and all(map(is_, now.values(), content.values())) and all(map(is_, now, content)):
            return []
        changes = [(name, MISSING, value) for name, value in now.items() if name not in content]
        for name, value in content.items():
            current = now.get(name, MISSING)
            if current is not value:
                changes.append((name, value, current))
        return [change for change in changes if change[0] not in self.skip]

    def items(self) -> Iterable[tuple[Any, Any]]:
        return self._kind().items(self.target)

    def set(self, name: Any, value: Any) -> None:
        self._kind().__setitem__(self.target, name, value)

    def delete(self, name: Any) -> None:
        self._kind().__delitem__(self.target, name)

    def _kind(self) -> Any:
        return OrderedDict if isinstance(self.target, OrderedDict) else dict


class SomeNames(Names):
    """Those of the names in a dict that code refers to: a script's global variables."""

    __slots__ = ("names",)

    def __init__(self, target: dict[str, Any], names: Iterable[str]) -> None:
        super().__init__(target)
        self.names = frozenset(names)

    def take(self) -> Content:
        return {name: self.target[name] for name in self.names if name in self.target}


class Slots(Names):
    """The slots of an object that has no ``__dict__``, or has both."""

    __slots__ = ("slots",)

    def __init__(self, target: Any, slots: Mapping[str, types.MemberDescriptorType]) -> None:
        super().__init__(target)
        self.slots = slots

    def items(self) -> Iterator[tuple[str, Any]]:
        for name, slot in self.slots.items():
            try:
                value = slot.__get__(self.target)
            except AttributeError:  # empty
                continue
            yield name, value

    def set(self, name: str, value: Any) -> None:
        self.slots[name].__set__(self.target, value)

    def delete(self, name: str) -> None:
        self.slots[name].__delete__(self.target)


class ClassValues(Names):
    """The attributes of a class, but for functions, properties and the like, and other classes."""

    __slots__ = ()

    @staticmethod
    def of(kind: type) -> list[tuple[str, Any]]:
        """All that the class itself defines, functions among it."""
        return [(name, v) for name, v in type.__getattribute__(kind, "__dict__").items() if not name.startswith("__")]

    def items(self) -> Iterator[tuple[str, Any]]:
        for name, value in self.of(self.target):
            if not hasattr(type(value), "__get__") and not isinstance(value, type | types.ModuleType):
                yield name, value

    def set(self, name: str, value: Any) -> None:
        type.__setattr__(self.target, name, value)

    def delete(self, name: str) -> None:
        type.__delattr__(self.target, name)


class Cell(Names):
    """A variable that functions share (``nonlocal``)."""

    __slots__ = ()

    def items(self) -> Iterable[tuple[str, Any]]:
        try:
            return [("", self.target.cell_contents)]
        except ValueError:  # empty
            return []

    def set(self, name: str, value: Any) -> None:
        self.target.cell_contents = value

    def delete(self, name: str) -> None:
        del self.target.cell_contents


class Elements(Holder):
    """A list, deque or set.

    Args:
        target: the object.
        whole: note all elements, however many there are.
    """

    __slots__ = ("whole",)

    def __init__(self, target: Any, whole: bool = False) -> None:
        super().__init__(target)
        self.whole = whole

    def take(self) -> Content:
        kind: Any = self._kind()
        if kind is list and list.__len__(self.target) > LONGEST and not self.whole:
            return list.__len__(self.target), ()
        return list(kind.__iter__(self.target))

    def put(self, content: Content, left_alone: LeftAlone) -> None:
        kind: Any = self._kind()
        target = self.target
        if type(content) is tuple:
            self._put_end(*content)
            return
        if kind.__len__(target) == len(content) and all(map(is_, kind.__iter__(target), content)):
            return
        if kind is list:
            list.__setitem__(target, slice(None), content)
            return
        kind.clear(target)
        (set.update if kind is set else deque.extend)(target, content)

    def extended(self, earlier: Content) -> Content:
        """What it holds now, where it had ``earlier``: of a long list what came at its end."""
        if type(earlier) is tuple:
            return earlier[0], tuple(list.__getitem__(self.target, slice(earlier[0], None)))
        return self.take()

    def has_changed(self, earlier: Content) -> bool:
        """Whether elements that it had were replaced, moved or taken away."""
        kind: Any = self._kind()
        if type(earlier) is tuple:
            return bool(list.__len__(self.target) < earlier[0])
        return kind.__len__(self.target) < len(earlier) or not all(map(is_, kind.__iter__(self.target), earlier))

    def _put_end(self, length: int, end: tuple[Any, ...]) -> None:
        if list.__len__(self.target) >= length:  # else it has been emptied, and what it held is not known
            list.__setitem__(self.target, slice(length, None), end)

    def _kind(self) -> type:
        return next(kind for kind in (list, deque, set) if isinstance(self.target, kind))


class Numbers(Holder):
    """A ``bytearray``, or an ``array.array``."""

    __slots__ = ()

    def take(self) -> Content:
        return self._kind().__getitem__(self.target, slice(None))

    def put(self, content: Content, left_alone: LeftAlone) -> None:
        if self.take() != content:
            self._kind().__setitem__(self.target, slice(None), content)

    def _kind(self) -> Any:
        return bytearray if isinstance(self.target, bytearray) else array


class Array(Holder):
    """A NumPy array."""

    __slots__ = ()

    def take(self) -> Content:
        return self.target.copy()

    def put(self, content: Content, left_alone: LeftAlone) -> None:
        self.target[...] = content


def bytes_of(array: Any) -> tuple[int, int]:
    """Where the memory of a NumPy array begins, and where it ends."""
    first = after = array.__array_interface__["data"][0]
    for size, stride in zip(array.shape, array.strides, strict=True):
        first, after = first + min(0, (size - 1) * stride), after + max(0, (size - 1) * stride)
    return first, after + array.itemsize if array.size else first


def is_long_and_changed(holder: Holder, content: Content) -> bool:
    """Of a list or dict that is not noted in every step: whether it does not hold what it held."""
    if not isinstance(holder, Elements | Names) or len(content) <= LONGEST:
        return False
    return holder.has_changed(content) if isinstance(holder, Elements) else bool(holder.changes(content))
