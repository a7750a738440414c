"""Copies of what a pass is about to write, made just before it does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

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


class InnerSteps:
    """Has copied what another optimizer than the base one is about to write, in a pass or between micro-batches.

    Args:
        writes: returns where copies go.
    """

    def __init__(self, writes: Callable[[], Writes]) -> None:
        self.writes = writes
        self.handle: RemovableHandle | None = None

    def watch(self) -> None:
        """The passes of a step begin."""
        if self.handle is None:
            self.handle = register_optimizer_step_pre_hook(self._before_step)

    def leave(self) -> None:
        """They are over."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        writes = self.writes()
        for tensor in _of(optimizer):
            for part in parts_of(tensor):
                writes.before_write(storage_of(part))


def _of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The tensors that an optimizer trains, and those that it holds."""
    for group in optimizer.param_groups:
        yield from group["params"]
    for held in optimizer.state.values():
        values = held.values() if isinstance(held, dict) else [held]  # some keep numbers for all parameters there
        yield from (value for value in values if isinstance(value, Tensor))
