"""Along what the loss is followed for critical sharpness: the update that an optimizer makes of a gradient.

An update is what is subtracted from the weights at learning rate 1.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .. import vectors
from ..engine.optimizers import base_optimizer
from ..vectors import Vector
from .surface import Surface

LEAST_RATE = 0.01
"""A step with a small learning rate would be lost among the digits of the weights: it is made with this one."""


def adam_first(gradient: Vector, eps: float = 1e-8) -> Vector:
    """The first update of Adam and AdamW (without weight decay): g / (|g| + eps), since both moments are those of g."""
    return [g / (g.abs() + eps) for g in gradient]


def own_update(surface: Surface, optimizer: torch.optim.Optimizer, gradient: Vector) -> Vector:
    """What an optimizer would make of a gradient now, with its moments, weight decay and parameter groups.

    It makes the step, and everything is put back: weights, its state, its settings. Per unit of the largest of the
    groups' learning rates.

    Args:
        surface: the loss, whose weights are the optimizer's.
        optimizer: the optimizer, in wrappers or not.
        gradient: of the surface's loss.
    """
    base = base_optimizer(optimizer)
    before = _Before(base)
    pieces, params = surface.memory.views(gradient), surface.params
    try:
        for parameter, piece in zip(params, pieces, strict=True):
            parameter.grad = vectors.shaped_like(piece.clone(), parameter)
        rates = [float(group.get("lr") or 0.0) for group in base.param_groups]
        rate = max(rates, default=0.0)
        if 0.0 < rate < LEAST_RATE:
            for group, own in zip(base.param_groups, rates, strict=True):
                _set_rate(group, own * LEAST_RATE / rate)
            rate = LEAST_RATE
        elif rate == 0.0:
            for group in base.param_groups:
                _set_rate(group, float(group.get("initial_lr") or LEAST_RATE))
            rate = max(float(group["lr"]) for group in base.param_groups)
        before.step()
        update = vectors.clone(surface.saved)
        vectors.add_(update, surface.memory.pieces, -1.0)
        vectors.scale_(update, 1.0 / rate)
    finally:
        for parameter in params:
            parameter.grad = None
        surface.put_back()
        before.restore()
    return update


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Learning rates may be tensors, which schedulers fill."""
    group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate


class _Before:
    """An optimizer before a step that is taken back: tensors keep their identity, hooks are not called."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.attributes = dict(vars(optimizer))
        self.groups = [dict(group) for group in optimizer.param_groups]
        self.state = {
            parameter: {key: (value, _copy(value)) for key, value in entries.items()}
            for parameter, entries in optimizer.state.items()
        }

    def step(self) -> None:
        """One step of the class's own: without the counters that schedulers wrap it in, and without hooks."""
        vars(self.optimizer).update(_optimizer_step_pre_hooks={}, _optimizer_step_post_hooks={})
        type(self.optimizer).step(self.optimizer)

    def restore(self) -> None:
        vars(self.optimizer).clear()
        vars(self.optimizer).update(self.attributes)
        for group, own in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.clear()
            group.update(own)
        for parameter in list(self.optimizer.state):
            if parameter not in self.state:
                del self.optimizer.state[parameter]
        for parameter, entries in self.state.items():
            own = self.optimizer.state[parameter]
            own.clear()
            for key, (value, copied) in entries.items():
                own[key] = value.copy_(copied) if isinstance(value, Tensor) else copied


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
