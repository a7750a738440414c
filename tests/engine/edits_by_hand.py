"""Edits of a gradient between the backward pass and the optimizer's step, and what decoupled WSAM makes of them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from models import accumulate, classification, steps_of
from reference import flat
from torch import Tensor, nn

from hf_sharpness import WSAM

LR, RHO, GAMMA = 0.3, 0.2, 0.9
STEPS = steps_of(classification(64), 8)
EXACT = {"rtol": 1e-11, "atol": 1e-12}
Edit = Callable[[list[nn.Parameter]], None]


def by_hand(
    model: nn.Module,
    factors: Callable[[int, Tensor], Tensor],
    begin: int = 1,
    left_out: Container[int] = (),
) -> Tensor:
    """w <- w - lr (f g + a f (g_s - g)), with a factor f for every element that depends on the parameter and on g.

    Args:
        model: whose weights are moved.
        factors: takes a parameter's number and g.
        begin: the first step that has them; 1 in those before.
        left_out: steps without the term.
    """
    params = list(model.parameters())
    for number, (batch,) in enumerate(STEPS, start=1):
        g = torch.autograd.grad(model(**batch)["loss"], params)
        size = torch.sqrt(sum(x.pow(2).sum() for x in g))
        start = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, x in zip(params, g, strict=True):
                p.add_(RHO * x / size)
        above = torch.autograd.grad(model(**batch)["loss"], params)
        a = GAMMA / (1 - GAMMA)
        with torch.no_grad():
            for index, (p, w, x, y) in enumerate(zip(params, start, g, above, strict=True)):
                f = factors(index, x) if number >= begin else torch.ones_like(x)
                p.copy_(w - LR * (f * x + (0.0 if number in left_out else a) * f * (y - x)))
    return flat(model)


def ours(model: nn.Module, edit: Edit, begin: int = 1, **options: Any) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, **options)
    method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA, mode="decoupled")
    for number, (batch,) in enumerate(STEPS, start=1):
        method.backward(lambda batch=batch: accumulate(model, batch, 1))
        if number >= begin:
            edit(list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


def mask_rows(params: list[nn.Parameter]) -> None:
    params[0].grad[:5] = 0


def replaced_by_a_masked_copy(params: list[nn.Parameter]) -> None:
    mask = torch.ones_like(params[0])
    mask[:5] = 0
    params[0].grad = params[0].grad * mask


def mask_then_clip(params: list[nn.Parameter]) -> None:
    mask_rows(params)
    nn.utils.clip_grad_norm_(params, 1e-3)
    for p in params:
        p.grad.mul_(200)


def none(params: list[nn.Parameter]) -> None:
    params[2].grad = params[3].grad = None


def clip_value(params: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_value_(params, 0.02)


def layer_factors(params: list[nn.Parameter]) -> None:
    for index, p in enumerate(params):
        p.grad.mul_(1 + index)


def reverse(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad.neg_()


def rows(index: int, g: Tensor) -> Tensor:
    f = torch.ones_like(g)
    f[:5] = index != 0
    return f


EDITS: dict[str, tuple[Edit, Callable[[int, Tensor], Tensor]]] = {
    "no edit": (lambda params: None, lambda index, g: torch.ones_like(g)),
    "mask": (mask_rows, rows),
    "masked copy": (replaced_by_a_masked_copy, rows),
    "none": (none, lambda index, g: torch.full_like(g, index < 2)),
    "clip_grad_value_": (clip_value, lambda index, g: torch.where(g != 0, g.clamp(-0.02, 0.02) / g, 0)),
    "a factor for each layer": (layer_factors, lambda index, g: torch.full_like(g, 1 + index)),
    "reversed": (reverse, lambda index, g: -torch.ones_like(g)),
}
