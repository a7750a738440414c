"""What the base optimizer divides its step by, element by element: for a term with the units of that step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..vectors import Vector, buckets, divide_by_roots_, local
from .optimizers import is_adaptive

NAMES = ("adamw_torch", "adamw_torch_fused", "sgd")
"""What transformers calls the optimizers whose preconditioner is known."""


def has_known_preconditioner(optimizer: torch.optim.Optimizer | str) -> bool:
    """Whether ``precondition_`` knows what the optimizer divides by: torch's Adam and AdamW in every form, and SGD.

    Args:
        optimizer: the base optimizer; or, before there is one, its name in transformers.
    """
    if isinstance(optimizer, str):
        return optimizer in NAMES
    known = (torch.optim.Adam, torch.optim.AdamW)  # which share one from torch 2.7 on
    steps = [inspect.unwrap(kind.step) for kind in known]
    return not is_adaptive(optimizer) or inspect.unwrap(type(optimizer).step) in steps


def refusal(optimizer: str, setting: str, remedy: str) -> str:
    """For an error: the optimizer by its name, what needs its preconditioner, and what to use instead."""
    return (
        f"{setting} divides by the base optimizer's own preconditioner, and that of {optimizer} is not known: use Adam "
        f"or AdamW of torch.optim (adamw_torch or adamw_torch_fused in transformers), or {remedy}"
    )


def precondition_(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], vector: Vector) -> None:
    """Divide by the preconditioner ``P`` of the step that the optimizer has just made. Local; waits for no device.

    Adam and AdamW: ``P = sqrt(v_hat) + eps`` with ``v_hat = v / (1 - beta2^t)`` (arXiv 1412.6980, algorithm 1); with
    ``amsgrad`` the largest v so far, as torch has it. SGD divides by nothing: ``P = 1``.

    Args:
        optimizer: the base optimizer, one with ``has_known_preconditioner``.
        params: parameters that it has stepped.
        vector: a local tensor for each of them, divided in place.
    """
    if not is_adaptive(optimizer):
        return
    terms = {id(p): tensor for p, tensor in zip(params, vector, strict=True)}
    for group in optimizer.param_groups:
        states = [(terms[id(p)], optimizer.state[p]) for p in group["params"] if id(p) in terms]
        moment = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        for bucket in buckets([term for term, _ in states], 25 * 2**20):  # the roots are a copy
            part, states = states[: len(bucket)], states[len(bucket) :]
            divide_by_roots_(
                bucket,
                local([state[moment] for _, state in part]),
                [_correction(group["betas"][1], state["step"]) for _, state in part],
                group["eps"],
            )


def _correction(beta: Any, step: Any) -> float | Tensor:
    """``sqrt(1 - beta^t)``: a number, unless a device counts the steps (fused or capturable)."""
    if isinstance(step, Tensor) and step.device.type != "cpu":
        return (-torch.expm1(step * math.log(beta))).sqrt()  # 1 - .999 loses four digits in fp32
    return math.sqrt(1 - float(beta) ** float(step))
