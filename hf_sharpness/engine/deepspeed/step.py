"""Keeps DeepSpeed from stepping inside the last backward, before the further passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

DIRECT = (
    "a backward pass that Accelerate does not know of has come to the model's weights: under DeepSpeed run "
    "self.accelerator.backward(loss) in the place of loss.backward(), which leaves the gradients where no step would "
    "find them (a stock Trainer's would not either)"
)


class DeferredStep:
    """Stands in the place of Accelerate's wrapper of the engine, which steps inside the last backward.

    Args:
        wrapper: Accelerate's ``DeepSpeedEngineWrapper``.
        at_boundary: says whether a backward is one in the last micro-batch of an optimizer step.
        begins: called before every backward.

    Attributes:
        backwards: how many backward passes there were.
    """

    def __init__(self, wrapper: Any, at_boundary: Callable[[], bool], begins: Callable[[], None]) -> None:
        self.wrapper = wrapper
        self.at_boundary = at_boundary
        self.begins = begins
        self.backwards = 0
        self.running = False
        self.hooks: list[RemovableHandle] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapper, name)

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Accelerate's, without the step."""
        engine = self.wrapper.engine
        if not torch.is_grad_enabled():  # a forward probe, which notes the loss that would be descended
            share = engine.gradient_accumulation_steps() if kwargs.get("scale_wrt_gas", True) else 1
            engine.optimizer.scale_if_loss(loss / share).backward()
            return
        self.begins()
        self.backwards += 1
        engine.set_gradient_accumulation_boundary(is_boundary=self.at_boundary())
        self.running = True
        try:
            engine.backward(loss, **kwargs)
        finally:
            self.running = False

    def guard(self, model: nn.Module) -> None:
        """Refuse backward passes by others that come to its trainable weights."""
        trained = [p for p in model.parameters() if p.requires_grad]
        self.hooks = [p.register_post_accumulate_grad_hook(self._check) for p in trained]

    def _check(self, parameter: Tensor) -> None:
        if not self.running:
            parameter.grad = None
            raise RuntimeError(DIRECT)

    def close(self) -> None:
        """Let other backward passes be."""
        for hook in self.hooks:
            hook.remove()
