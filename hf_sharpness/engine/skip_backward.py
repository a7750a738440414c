"""Lets a forward-and-backward closure serve as a forward probe."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .watch import BACKWARD, reads_gradient


class SkipBackward(TorchFunctionMode):
    """Turns ``loss.backward()`` into nothing, so that a forward-and-backward closure serves as a forward probe.

    Attributes:
        over: whether the probe has ended. An interrupt that comes while the mode is being left leaves it on torch's
            stack, where it must do nothing from then on.
        incomplete: whether the closure wanted derivatives for its loss, which it cannot have like this.
    """

    over = False
    incomplete = False
    skipped = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.over:
            if func in BACKWARD:
                self.skipped = True
                return None
            self.incomplete |= func is torch.autograd.grad or (self.skipped and reads_gradient(func))
        return func(*args, **(kwargs or {}))
