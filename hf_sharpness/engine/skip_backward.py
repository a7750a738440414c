"""Lets a forward-and-backward closure serve as a forward probe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .watch import BACKWARD, reads_gradient


class SkipBackward(TorchFunctionMode):
    """Turns ``loss.backward()`` into nothing, so that a forward-and-backward closure serves as a forward probe.

    Args:
        parameters: the base optimizer's.
        skips: False lets ``backward`` be, and only notes its losses.
        ignored: whose ``.grad`` others read.

    Attributes:
        losses: what ``backward`` was called on, detached: scalars without a gradient of their own.
        chained: whether a gradient of other tensors than parameters was read after a backward pass, as by gradient
            caching, whose later ``losses`` are then none: they only carry that gradient on.
        incomplete: whether the closure wanted derivatives for its loss, which it cannot have like this.
    """

    incomplete = False
    skipped = False
    chained = False

    def __init__(self, parameters: Iterable[Tensor], skips: bool = True, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.ignored = {id(p) for p in ignored}
        self.parameters = {id(p) for p in parameters}
        self.skips = skips
        self.losses: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in BACKWARD:
            self._note(*args, **kwargs)
            if self.skips:
                self.skipped = True
                return None
        if reads_gradient(func) and id(args[0]) not in self.ignored:
            self.incomplete |= self.skipped
            self.chained |= bool(self.losses) and id(args[0]) not in self.parameters
        self.incomplete |= func is torch.autograd.grad
        return func(*args, **kwargs)

    def _note(self, tensors: Any, gradient: Any = None, *args: Any, grad_tensors: Any = None, **kwargs: Any) -> None:
        if gradient is None and grad_tensors is None:
            losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            self.losses += [loss.detach().reshape(()) for loss in losses if loss.numel() == 1]
