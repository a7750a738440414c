"""What a Trainer's loss function counts on the Trainer: kept from counting a micro-batch again when it is replayed."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor

_CONTAINERS = {list, dict, set, deque, defaultdict, OrderedDict, Counter}
_MAX_CONTAINERS, _MAX_LENGTH = 1_000, 100_000  # more than that is data, not a tally
_DATA = {"train_dataset", "eval_dataset"}


@contextlib.contextmanager
def counters_kept(owner: object) -> Iterator[None]:
    """Afterwards the owner's attributes are what they were before: rebound ones, and lists, dicts and tallies in them.

    Inside, the containers (of plain types, nested or not, and 0-dim tensors in them) are copies; other objects are
    shared, and what happens inside those stays.
    """
    before = dict(vars(owner))
    for name, value in before.items():
        if _is_counted(name, value):
            with contextlib.suppress(_TooLarge):
                setattr(owner, name, _copy(value, [_MAX_CONTAINERS]))
    try:
        yield
    finally:
        vars(owner).update(before)


class Tally:
    """What an object counts in its attributes, as it was: for what has happened since to be taken back.

    Covers numbers, rebound objects, and the containers that ``counters_kept`` copies. What may guard what is to happen
    once (flags, and objects where None was) is left as it is.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.before = dict(vars(owner))
        self.others: set[str] = set()
        self.paused: dict[str, object] = {}
        for name, value in vars(owner).items():
            if _is_counted(name, value):
                with contextlib.suppress(_TooLarge):
                    self.before[name] = _copy(value, [_MAX_CONTAINERS])

    def pause(self) -> None:
        """From now on others count: the numbers and tensors that they change are theirs, and stay."""
        self.paused = _marks(self.owner)

    def go_on(self) -> None:
        """They have counted."""
        marks = _marks(self.owner)
        self.others |= {name for name, mark in self.paused.items() if marks.get(name) != mark}

    def restore(self) -> None:
        """Take it back. Containers are then new ones."""
        own = vars(self.owner)
        for name, value in self.before.items():
            if (
                name in self.others
                or type(value) is bool
                or (value is None and type(own.get(name)) not in (int, float))
            ):
                continue
            own[name] = value


def _marks(owner: object) -> dict[str, object]:
    """For every number and tensor something that differs once it has changed."""
    marks: dict[str, object] = {}
    for name, value in vars(owner).items():
        if type(value) in (int, float):
            marks[name] = value
        elif isinstance(value, Tensor):
            marks[name] = id(value), value._version
    return marks


class _TooLarge(Exception):
    pass


def _is_counted(name: str, value: Any) -> bool:
    return name not in _DATA and (type(value) in _CONTAINERS or isinstance(value, Tensor))


def _copy(value: Any, left: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.dim() == 0 else value
    if type(value) not in _CONTAINERS:
        return value
    left[0] -= 1
    if left[0] < 0 or len(value) > _MAX_LENGTH:
        raise _TooLarge
    copied = copy.copy(value)
    if isinstance(value, set):
        return copied
    items = value.items() if isinstance(value, dict) else enumerate(value)
    kinds = set(map(type, value.values() if isinstance(value, dict) else value))
    if any(kind in _CONTAINERS or issubclass(kind, Tensor) for kind in kinds):
        for key, element in items:
            copied[key] = _copy(element, left)
    return copied
