"""Objects that are left alone, as other threads may write to them: where a pass has changed one, that is told."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Iterable
from operator import is_
from typing import Any

from . import bounds
from .holders import Content, Elements, Holder, Names
from .paths import Path, name_of

LEFT_ALONE = (
    "{name} holds a lock, and was changed in a training step, again in its further passes. Other threads may write to "
    "such an object, so that it is left alone. If passes change it, and that is to be put back, keep what they change "
    "in an object without a lock"
)
Noted = tuple[str, Holder, Content]
"""What messages call such an object, and what it held, or a list or dict of its."""


def holds_locks_alone(values: Iterable[Any]) -> bool:
    """Whether nothing in an object says that another thread writes to it: no thread of its own, and no queue."""
    return all(
        bounds.module_of(type(value)) in ("_thread", "threading") and not isinstance(value, threading.Thread)
        for value in bounds.of_threads(values)
    )


def holders_of(value: Any, path: Path) -> list[tuple[str, Holder]]:
    """What reads such an object, and the lists and dicts that it holds; each with what messages call the object."""
    own = bounds.attributes_of(value)
    found: list[Holder] = [Names(held) for held in (own, *own.values()) if type(held) is dict]
    found += [Elements(held, whole=True) for held in own.values() if type(held) in (list, deque, set)]
    name = f"{name_of(path)} (a {type(value).__name__})"
    return [(name, holder) for holder in found]


class Services:
    """Tells, once, of each that the first passes of a step have changed, and its further passes as well."""

    def __init__(self) -> None:
        self.changed: set[str] = set()
        self.told: set[str] = set()

    def note(self, before: Iterable[Noted]) -> None:
        """The first passes have been made; what was noted before them."""
        self.changed = _changed(before)

    def tell(self, after: Iterable[Noted]) -> None:
        """The further passes have been made; what was noted before them."""
        for name in sorted((self.changed & _changed(after)) - self.told):
            self.told.add(name)
            warnings.warn(LEFT_ALONE.format(name=name), stacklevel=2)
        self.changed = set()


def _changed(noted: Iterable[Noted]) -> set[str]:
    return {name for name, holder, content in noted if _has_changed(holder, content)}


def _has_changed(holder: Holder, content: Content) -> bool:
    now = holder.take()
    values = (now.values(), content.values()) if isinstance(holder, Names) else (now, content)
    return len(now) != len(content) or not all(map(is_, *values))
