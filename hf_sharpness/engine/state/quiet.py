"""Modules that hold settings and other modules alone: known by heart, so that most steps need not walk over them."""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import nn

from .holders import Content, Names


class QuietModules:
    """The quiet modules that a walk has found. A model consists mostly of them.

    Attributes:
        entries: their attributes with what those held.
        ids: their ids.
        is_complete: whether the walk came to its end.
        inner: dicts among the attributes that are empty as long as all are quiet.
        others: modules that are not quiet, with their paths: where the next walk begins.
    """

    def __init__(self) -> None:
        self.restless: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Know none."""
        self.is_complete = False
        self.entries: list[tuple[Names, Content]] = []
        self.ids: set[int] = set()
        self.modules: list[nn.Module] = []
        self.others: list[tuple[nn.Module, Any]] = []
        self.inner: list[dict[Any, Any]] = []

    def add(self, module: nn.Module, holder: Names, inner: list[dict[Any, Any]]) -> bool:
        """Take note of a quiet module, unless it was not quiet before. Returns whether it is noted.

        Args:
            module: the module.
            holder: its attributes.
            inner: dicts among them that are empty as long as the module is quiet (buffers, hooks).
        """
        if id(module) in self.restless:
            return False
        self.ids.add(id(module))
        self.modules.append(module)
        self.entries.append((holder, holder.take()))
        self.inner += inner
        return True

    def are_unchanged(self) -> bool:
        """Whether all are as they were. Those that are not are never taken for quiet again."""
        if not self.is_complete:
            return False
        changed = [not _same(holder.target, content) for holder, content in self.entries]
        self.restless.update(id(module) for module, differs in zip(self.modules, changed, strict=True) if differs)
        return not any(changed) and not any(self.inner)


def changed_of(entries: list[tuple[Names, Content]]) -> list[tuple[Names, Content]]:
    """Those entries whose attributes hold other values now."""
    return [(holder, content) for holder, content in entries if not _same(holder.target, content)]


def _same(own: dict[str, Any], content: Content) -> bool:
    return len(own) == len(content) and all(map(is_, own.values(), content.values()))
