"""Copies of what a pass is about to write, made just before it does."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .moment import Moment
from .paths import Path
from .tensors import Watched, parts_of, storage_of


class Writes:
    """What is known to be written from now on, and copied if nothing has been.

    Args:
        moments: those that the pass is to be put back to.
        written: paths of tensors that passes are known to write, to which is added.
    """

    def __init__(self, moments: Iterable[Moment], written: set[Path]) -> None:
        self.moments = moments
        self.written = written

    @functools.cached_property
    def by_storage(self) -> dict[int, list[Watched]]:
        """The tensors that lie on each storage."""
        found: dict[int, list[Watched]] = {}
        for watched in (w for moment in self.moments for w in moment.tensors.by_region.values()):
            found.setdefault(watched.region[0], []).append(watched)
        return found

    def before_write(self, storage: int) -> None:
        """Something is about to be written into a storage."""
        for watched in self.by_storage.get(storage, ()):
            self.written.add(watched.path)
            watched.is_known = True
            if watched.saved is None:
                watched.save()

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer of the pass's own steps, perhaps for the first time: it trains a critic from now on."""
        for tensor in _of(optimizer):
            for part in parts_of(tensor):
                self.before_write(storage_of(part))


def _of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The tensors that an optimizer trains, and those that it holds."""
    for group in optimizer.param_groups:
        yield from group["params"]
    for held in optimizer.state.values():
        yield from (value for value in held.values() if isinstance(value, Tensor))
