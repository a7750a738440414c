"""Lets a forward-and-backward closure serve as a forward probe."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class SkipBackward(TorchFunctionMode):
    """Turns ``loss.backward()`` into nothing, so that a forward-and-backward closure serves as a forward probe.

    Attributes:
        over: whether the probe has ended. An interrupt that comes while the mode is being left leaves it on torch's
            stack, where it must do nothing from then on.
    """

    over = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.backward, torch.autograd.backward) and not self.over:
            return None
        return func(*args, **(kwargs or {}))
