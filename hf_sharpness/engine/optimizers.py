"""What a base optimizer is: the one inside its wrappers, and whether it is adaptive."""

from __future__ import annotations

from typing import Any

import torch


def base_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that steps, without the wrappers that Accelerate and DeepSpeed put around it."""
    base = optimizer
    inner: Any = optimizer
    while (inner := getattr(inner, "optimizer", None)) is not None:
        if isinstance(inner, torch.optim.Optimizer):  # DeepSpeed's wrapper is none
            base = inner
    return base


def is_adaptive(optimizer: torch.optim.Optimizer | str) -> bool:
    """Whether an optimizer rescales every coordinate of its step: Adam and the like, everything but plain SGD.

    Args:
        optimizer: the optimizer; or, before there is one, its name in transformers (a value of ``OptimizerNames``).
    """
    if isinstance(optimizer, str):
        return optimizer != "sgd"
    return not isinstance(optimizer, torch.optim.SGD)
