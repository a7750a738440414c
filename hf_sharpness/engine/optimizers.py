"""What a base optimizer is: the one inside its wrappers, whether it is adaptive, and what it holds by parameter."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..methods.base_kind import BaseKind
from ..vectors import Vector, local

REPLACED = (
    "the optimizer was replaced between the backward pass and its step, so that the term which the method adds after "
    "the step is lost: replace it before a step begins (on_step_begin) or when one has ended (on_step_end)"
)


def base_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that steps, without the wrappers that Accelerate and DeepSpeed put around it."""
    base = optimizer
    inner: Any = optimizer
    while (inner := getattr(inner, "optimizer", None)) is not None:
        if isinstance(inner, torch.optim.Optimizer):  # DeepSpeed's wrapper is none
            _check_wraps(base, inner)
            base = inner
    _complete(base)
    return base


def _check_wraps(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> None:
    """Raise a ValueError if the outer optimizer steps parameters that the one it holds does not have."""
    groups = getattr(outer, "param_groups", None) or ()
    if groups is inner.param_groups:  # Accelerate's, asked in every step
        return
    known = {id(p) for group in inner.param_groups for p in group["params"]}
    if not all(id(p) in known for group in groups for p in group["params"] if p.requires_grad):
        raise ValueError(
            f"{type(outer).__name__} holds {type(inner).__name__} in its attribute `optimizer`, as a wrapper does, but "
            "has parameters that this one has not, so that it is not clear which ones are trained: let param_groups "
            "hold all parameters, and call the attribute another name"
        )


def _complete(optimizer: torch.optim.Optimizer) -> None:
    """One that is made of several (Muon and AdamW, say) may have left out ``super().__init__()``: give it its hooks."""
    # Private name of torch's, to ask for alone: a wrapper may have the hooks of the optimizer that it stands before.
    if isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "_optimizer_step_post_hooks"):
        if not hasattr(optimizer, "defaults"):
            optimizer.defaults = {}
        # torch has the class's ``step`` call hooks, which other instances of it do not have: this one's alone shall.
        kind: Any = type(optimizer)
        own, found = vars(kind).get("step"), kind.step
        torch.optim.Optimizer.__setstate__(optimizer, {})
        if kind.step is not found:
            if own is None:
                del kind.step
            else:
                kind.step = own
            _have_hooks_called(optimizer)


def _have_hooks_called(optimizer: Any) -> None:
    stepped = optimizer.step  # a scheduler may have wrapped it

    @functools.wraps(stepped)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stepped(*args, **kwargs)

    optimizer.step = types.MethodType(torch.optim.Optimizer.profile_hook_step(step), optimizer)


def is_adaptive(optimizer: torch.optim.Optimizer | str) -> bool:
    """Whether an optimizer rescales every coordinate of its step: Adam and the like, everything but plain SGD.

    Args:
        optimizer: the optimizer; or, before there is one, its name in transformers (a value of ``OptimizerNames``).
    """
    if isinstance(optimizer, str):
        return optimizer != "sgd"
    return not isinstance(optimizer, torch.optim.SGD)


def kind_of(optimizer: torch.optim.Optimizer) -> BaseKind:
    """What kind of base optimizer this is."""
    return _kind(is_adaptive(optimizer), any(group.get("momentum") for group in optimizer.param_groups))


def kind_named(name: str, settings: str | None) -> BaseKind:
    """The same, before there is one.

    Args:
        name: its name in transformers (a value of ``OptimizerNames``).
        settings: transformers' ``optim_args``.
    """
    pairs = dict(pair.partition("=")[::2] for pair in (settings or "").replace(" ", "").split(","))
    return _kind(is_adaptive(name), pairs.get("momentum", "").strip("0.") != "")  # another digit than 0


def _kind(adaptive: bool, momentum: bool) -> BaseKind:
    return "adaptive" if adaptive else "momentum" if momentum else "plain"


STATE_NAMES = {
    "momentum": ("exp_avg", "momentum_buffer"),
    "second_moment": ("exp_avg_sq", "square_avg", "sum"),
}
"""What optimizers call their moments: Adam and its kin, Lion; SGD and RMSprop with momentum; RMSprop; Adagrad."""


def optimizer_state(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], key: str) -> Vector | None:
    """A copy of what the optimizer holds for each parameter, this rank's shards.

    Args:
        optimizer: the base optimizer.
        params: some of its parameters.
        key: ``momentum``, ``second_moment``, or the optimizer's own name of a state.

    Returns:
        A vector with zeros for parameters without such a state; None as long as none has one.

    Raises:
        ValueError: the optimizer has no such state, or not one number for each weight.
    """
    names = STATE_NAMES.get(key, (key,))
    remedy = "use one that has, such as AdamW or SGD with momentum"
    states = [optimizer.state.get(p, {}) for p in params]
    found = [next((state[name] for name in names if state.get(name) is not None), None) for state in states]
    if all(tensor is None for tensor in found):
        never = key == "momentum" and all(group.get("momentum") == 0 for group in optimizer.param_groups)
        if never or any(states):
            raise ValueError(f"the base optimizer {type(optimizer).__name__} has no state {key!r}: {remedy}")
        return None
    vector = []
    for weight, tensor in zip(local(params), found, strict=True):
        held = torch.zeros_like(weight) if tensor is None else local([tensor])[0]
        if held.shape != weight.shape or not held.is_floating_point():
            raise ValueError(
                f"the base optimizer {type(optimizer).__name__} holds its state {key!r} in a form of its own "
                f"({tuple(held.shape)} {held.dtype} for a weight of {tuple(weight.shape)}): {remedy}"
            )
        vector.append(held.to(weight.device, copy=True))
    return vector


def maximizes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer climbs (``maximize=True``), so that what it minimises is minus the loss.

    Raises:
        ValueError: it climbs with some of its groups only.
    """
    signs = {bool(group.get("maximize", False)) for group in optimizer.param_groups}
    if len(signs) > 1:
        raise ValueError(
            "maximize=True in some of the optimizer's param groups only: there is no one loss whose neighbourhood a "
            "sharpness-aware step could look at. Use the same in all groups"
        )
    return True in signs
