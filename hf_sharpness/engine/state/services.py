"""Objects that are left alone, as other threads may write to them: where a pass has changed one, that is told."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from operator import is_
from typing import Any

from . import bounds
from .holders import Content, Elements, Holder, Names
from .paths import Path, name_of

LEFT_ALONE = (
    "{name}, which holds a lock, a thread or a queue, was changed in a training step. Other threads may write to such "
    "an object, so that it is left alone: the further passes of a step change it again. If that is to be put back, "
    "keep what passes change in an object without these"
)
Noted = tuple[str, Holder, Content]
"""What messages call such an object, and what it held, or a list or dict of its."""


def holders_of(value: Any, path: Path) -> list[tuple[str, Holder]]:
    """What reads such an object, and the lists and dicts that it holds; each with what messages call the object."""
    own = bounds.attributes_of(value)
    found: list[Holder] = [Names(held) for held in (own, *own.values()) if type(held) is dict]
    found += [Elements(held, whole=True) for held in own.values() if type(held) in (list, deque, set)]
    name = f"{name_of(path)} (a {type(value).__name__})"
    return [(name, holder) for holder in found]


class Services:
    """Tells of each of them once."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def tell(self, noted: Iterable[Noted]) -> None:
        """Warn of those that do not hold now what they held before the first passes of a step."""
        changed = {name for name, holder, content in noted if _has_changed(holder, content)}
        for name in sorted(changed - self.told):
            self.told.add(name)
            warnings.warn(LEFT_ALONE.format(name=name), stacklevel=2)


def _has_changed(holder: Holder, content: Content) -> bool:
    now = holder.take()
    values = (now.values(), content.values()) if isinstance(holder, Names) else (now, content)
    return len(now) != len(content) or not all(map(is_, *values))
