"""Keeps DeepSpeed from stepping inside the last backward, before the further passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DeferredStep:
    """Stands in the place of Accelerate's wrapper of the engine, which steps inside the last backward.

    Args:
        wrapper: Accelerate's ``DeepSpeedEngineWrapper``.
        at_boundary: says whether a backward is the last of an optimizer step.

    Attributes:
        backwards: how many backward passes there were.
    """

    def __init__(self, wrapper: Any, at_boundary: Callable[[], bool]) -> None:
        self.wrapper = wrapper
        self.at_boundary = at_boundary
        self.backwards = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Accelerate's, without the step."""
        if not torch.is_grad_enabled():
            return  # a forward probe
        self.backwards += 1
        engine = self.wrapper.engine
        engine.set_gradient_accumulation_boundary(is_boundary=self.at_boundary())
        engine.backward(loss, **kwargs)
