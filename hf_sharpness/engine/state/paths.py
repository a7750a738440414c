"""Where objects are found: from which root, under which names."""

from __future__ import annotations

from typing import Any, NamedTuple

Path = tuple[Any, Any]
"""Where an object was found: the path of what holds it, and the name or index there."""


class Root(NamedTuple):
    """Where a walk begins.

    Args:
        name: how messages call it.
        value: the object.
        skip: names of its attributes that are none of a pass's state.
    """

    name: str
    value: Any
    skip: frozenset[str] = frozenset()


def name_of(path: Path) -> str:
    """A path as one writes it: ``model.encoder.queue``, ``trainer._metrics['train']``."""
    holder, key = path
    if holder is None:
        return str(key)
    if key == "":
        return name_of(holder)
    if isinstance(key, str) and key.isidentifier():
        return f"{name_of(holder)}.{key}"
    return f"{name_of(holder)}[{key if isinstance(key, (str, int)) else '...'}]"


OF_A_MICRO_BATCH = ("batch", "closure")
"""Names of roots that each micro-batch has of its own."""


def root_of(path: Path) -> str:
    """The name of the root that a path begins with."""
    holder, key = path
    return key if holder is None else root_of(holder)
