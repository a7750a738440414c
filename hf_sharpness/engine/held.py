"""Gradients that lie in memory of the user's, which passes write: ``p.grad = self.flat[a:b].view_as(p)``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ..vectors import local
from .state.tensors import Tensors, overlaps, ranges_of, storage_of


class HeldGradients:
    """Has the gradients of a step in memory of their own while passes are made, and in the user's at its end.

    Args:
        moments: the tensors that further passes begin with, as they were before the first ones.
    """

    def __init__(self, moments: Iterable[Tensors]) -> None:
        self.ranges: dict[int, list[tuple[int, int]]] = {}
        for tensors in moments:
            for storage, first, after in tensors.by_region:
                self.ranges.setdefault(storage, []).append((first, after))
        self.originals: dict[nn.Parameter, Tensor] = {}

    def take(self, parameters: Iterable[nn.Parameter]) -> None:
        """A pass has ended: what it has left in such memory is copied."""
        if not self.ranges:
            return
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and self._holds(gradient):
                self.originals.setdefault(parameter, gradient)
                parameter.grad = gradient.detach().clone()

    def give_back(self) -> None:
        """The step is over: the memory holds its gradient."""
        for parameter, original in self.originals.items():
            if parameter.grad is not None:
                original.detach().copy_(parameter.grad)
                parameter.grad = original

    def _holds(self, gradient: Tensor) -> bool:
        if type(gradient) is Tensor and storage_of(gradient) not in self.ranges:  # nearly every one
            return False
        pieces = ((self.ranges.get(storage, ()), own) for storage, own in ranges_of(local([gradient])).items())
        return any(overlaps(first, after, held) for held, own in pieces for first, after in own)
