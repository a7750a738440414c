"""What a plain loop is told that takes a method for an optimizer, as other packages have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..engine.optimizers import base_optimizer
from ..sharing.values import nearest

NO_OPTIMIZER = (
    "{name} is no optimizer and has no {attribute}: call method.backward(closure) in the place of loss.backward(), and "
    "step, schedule and zero the base optimizer as ever"
)
A_MODEL = "model={given} is not valid: give the model itself, as in {name}(model, optimizer, rho=0.05)"
NOT_SET = (
    "{attribute}={value!r} cannot be set once a {name} is made, only its numbers such as rho can: make a new one, "
    "{name}(model, optimizer, {attribute}={value!r})"
)
AN_OPTIMIZER = (
    "optimizer={given} is not valid: give the base optimizer, a torch.optim.Optimizer of the model's parameters, as in "
    "{name}(model, torch.optim.SGD(model.parameters(), lr=0.1))"
)


def check_given(name: str, model: Any, optimizer: Any) -> None:
    """Raise a TypeError where what a method of this name is given is no model, or no optimizer."""
    if not isinstance(model, nn.Module):
        raise TypeError(A_MODEL.format(given=_shortly(model), name=name))
    is_one = not isinstance(optimizer, type) and hasattr(optimizer, "param_groups")
    if not is_one or not hasattr(base_optimizer(optimizer), "register_step_post_hook"):
        raise TypeError(AN_OPTIMIZER.format(given=_shortly(optimizer), name=name))


def _shortly(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"


def no_attribute(name: str, attribute: str) -> str:
    """What the AttributeError says."""
    if hasattr(torch.optim.Optimizer, attribute) or attribute in ("param_groups", "first_step", "second_step"):
        return NO_OPTIMIZER.format(name=name, attribute=attribute)
    return f"{name!r} object has no attribute {attribute!r}"


def refuse_unknown(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError that names an argument which is none of the known ones, and the nearest of these."""
    for argument in given:
        if argument not in known:
            remedy = nearest(argument, known) or "remove it"
            raise TypeError(f"{name}: there is no argument {argument!r}: {remedy.rstrip()}")
