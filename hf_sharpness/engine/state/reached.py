"""What a walk over Python objects has found."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .holders import Holder
from .paths import Path


class Reached:
    """What a walk found.

    Attributes:
        holders: objects with contents.
        tensors: tensors that are none of the weights, each with its path.
        generators: random generators.
        iterators: what can be drawn from just once.
        services: objects of the user's classes that are left alone, as other threads may write to them, with what
            messages call them: in a walk that notes everything.
        hooks: the dicts of hooks on modules.
        wrappers: ids of those around modules, such as DDP's.
        optimizers: ids of those that are put back with what they hold.
        is_cut: whether there were more objects than a walk looks at.
    """

    def __init__(self) -> None:
        self.holders: list[Holder] = []
        self.tensors: list[tuple[Path, Tensor]] = []
        self.generators: list[Any] = []
        self.iterators: list[Any] = []
        self.services: list[tuple[str, Holder]] = []
        self.hooks: list[dict[Any, Any]] = []
        self.wrappers: set[int] = set()
        self.optimizers: set[int] = set()
        self.is_cut = False
