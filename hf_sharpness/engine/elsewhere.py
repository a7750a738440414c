"""Optimizers that take their gradient elsewhere than from p.grad: a sharpness-aware step would not reach them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Attributes = dict[int, dict[str, Any]]

_REFUSED = (
    "{what}, so that a sharpness-aware step would mix the gradients of several passes and not decide the update. "
    "Per-example gradients (differential privacy) and optimizers that step in the backward pass are not supported: use "
    "an optimizer that steps with p.grad, or train without a sharpness-aware method"
)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError if it is known for taking its gradient elsewhere."""
    if hasattr(type(optimizer), "grad_samples"):  # Opacus
        raise ValueError(_REFUSED.format(what=f"{type(optimizer).__name__} steps with p.grad_sample, not with p.grad"))
    for group in optimizer.param_groups:
        if any(hasattr(p, "_in_backward_optimizers") for p in group["params"]):
            raise ValueError(_REFUSED.format(what="optimizers of single parameters step in the backward pass"))


def gradient_attributes(parameters: Iterable[Tensor]) -> Attributes:
    """What parameters have by names with "grad" in them, besides p.grad itself."""
    found = {}
    for parameter in parameters:
        own = {name: value for name, value in vars(parameter).items() if "grad" in name}
        if own:
            found[id(parameter)] = own
    return found


def check_pass(parameters: Iterable[Tensor], before: Attributes) -> None:
    """Raise a ValueError if a backward pass has left gradients in other attributes of the parameters than p.grad.

    Args:
        parameters: the base optimizer's.
        before: theirs before the pass, as ``gradient_attributes`` found them.
    """
    for parameter in parameters:
        earlier = before.get(id(parameter), {})
        for name, value in gradient_attributes([parameter]).get(id(parameter), {}).items():
            if value is not earlier.get(name) and any(_is_gradient(part, parameter) for part in _parts(value)):
                raise ValueError(_REFUSED.format(what=f"the backward pass leaves gradients in p.{name}"))


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_gradient(value: Any, parameter: Tensor) -> bool:
    """Whether it is of the parameter's shape, for the batch or for every example in it."""
    return isinstance(value, Tensor) and value.shape[value.dim() - parameter.dim() :] == parameter.shape
