"""What a walk over Python objects has before it, and what it has found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from . import bounds
from .paths import Path
from .quiet import QuietModules
from .reached import Reached
from .visits import visit_of


class Frontier:
    """The objects that a walk has still to visit, in a queue, and what it has found in those before.

    Args:
        is_weight: as of ``reach``.
        binds_weights: as of ``reach``.
        quiet: as of ``reach``.
        changing: as of ``reach``.
    """

    def __init__(
        self,
        is_weight: Callable[[Any], bool],
        binds_weights: bool,
        quiet: QuietModules,
        changing: Collection[int] | None,
    ) -> None:
        self.changing = changing
        self.quiet = quiet
        self.is_weight = is_weight
        self.binds_weights = binds_weights
        self.reached = Reached()
        self.seen: set[int] = set()
        self.queue: list[tuple[str, Any, Path]] = []
        self.skips: dict[int, frozenset[str]] = {}
        self.variables: dict[int, tuple[dict[str, Any], set[str]]] = {}

    def put(self, value: Any, path: Path) -> None:
        """Have a value looked at later, if there is anything in it."""
        kind = type(value)
        if kind in bounds.ATOMS or id(value) in self.seen:
            return
        visit = visit_of(kind)
        if visit is None:
            return
        if len(self.queue) >= bounds.MOST:
            self.reached.is_cut = True
            return
        self.seen.add(id(value))
        self.queue.append((visit, value, path))

    def changes(self, value: Any) -> bool:
        """Whether a long list or dict is to be noted."""
        return self.changing is None or id(value) in self.changing

    def put_all(self, items: Iterable[tuple[Any, Any]], path: Path) -> None:
        for key, value in items:
            if type(value) not in bounds.ATOMS:
                self.put(value, (path, key))
