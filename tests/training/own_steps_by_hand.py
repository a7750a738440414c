"""What the trainers of ``own_steps`` do to the gradient, written down a second time, as functions.

From the gradient so far to the gradient after the micro-batch, and the losses it descends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models import Batch, Net
from own_steps import (
    EXTRA,
    MEMORY,
    ROWS,
    After,
    Ascending,
    Attacked,
    AttackedAnew,
    Before,
    Clipped,
    Decayed,
    Deep,
    Extra,
    ExtraEachTime,
    Inside,
    Masked,
    MaskedData,
    Own,
    Surgery,
    Twice,
)
from reference import flat
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

Reference = Callable[[nn.Module, Batch, Tensor, int, bool], tuple[Tensor, Any]]


def grad(loss: Tensor, net: nn.Module) -> Tensor:
    return parameters_to_vector(torch.autograd.grad(loss, list(net.parameters())))


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    return net(**batch)["loss"]


def with_memory(weight: Callable[[int], float]) -> Reference:
    def step(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
        loss = loss_of(net, batch) / n + loss_of(net, MEMORY) * weight(n)
        return g + grad(loss, net), loss

    return step


def edited(edit: Callable[[Tensor, bool], Tensor]) -> Reference:
    def step(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
        loss = loss_of(net, batch) / n
        return edit(g + grad(loss, net), last), loss

    return step


def masked(g: Tensor, last: bool = True) -> Tensor:
    return torch.cat([torch.zeros(ROWS * 6, dtype=g.dtype), g[ROWS * 6 :]])  # the weight of the first layer is 8 x 6


def decayed(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    loss = loss_of(net, batch) / n
    return 0.5 * g + grad(loss, net), loss


def own(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    loss = loss_of(net, {"x": 2 * batch["x"], "labels": batch["labels"]})
    return g + grad(loss, net), loss


def attacked(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    clean = loss_of(net, batch) / n
    g = g + grad(clean, net)
    w = flat(net)
    direction = torch.zeros_like(w)
    direction[: 8 * 6] = g[: 8 * 6] / g[: 8 * 6].norm()
    vector_to_parameters(w + 0.5 * direction, net.parameters())
    loss = loss_of(net, batch)
    g = g + grad(loss, net)
    vector_to_parameters(w, net.parameters())
    return g, clean.detach() + loss.detach()


def surgery(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    losses = [loss_of(net, batch), loss_of(net, MEMORY)]
    a, b = (grad(loss, net) for loss in losses)
    if a @ b < 0:
        a, b = a - (a @ b) / (b @ b) * b, b - (a @ b) / (a @ a) * a
    return g + a + b, sum(losses)


def deep(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    g, loss = with_memory(lambda n: 1)(net, batch, g, n, last)
    return masked(g), loss


def clipped(g: Tensor, last: bool) -> Tensor:
    return g * torch.clamp(0.3 / (g.norm() + 1e-6), max=1.0)


CASES: dict[type, Reference] = {
    Before: with_memory(lambda n: 1),
    After: with_memory(lambda n: 1),
    Twice: with_memory(lambda n: 1 / n),
    Inside: with_memory(lambda n: 1),
    Extra: edited(lambda g, last: g + EXTRA * last),
    ExtraEachTime: edited(lambda g, last: g + EXTRA),
    Masked: edited(masked),
    MaskedData: edited(masked),
    Decayed: decayed,
    Clipped: edited(clipped),
    Own: own,
    Attacked: attacked,
    AttackedAnew: attacked,
    Surgery: surgery,
    Ascending: edited(lambda g, last: -g if last else g),
    Deep: deep,
}
NOT_ADDITIVE = {Decayed, Clipped, Attacked, AttackedAnew, Ascending}
"""What these do to a micro-batch's gradient depends on those before it: scope `micro_batch` shows them none."""


@dataclass
class OwnProblem:
    """The effective batch's gradient as such a step makes it, for the reference methods."""

    net: Net
    step: Reference
    micro_batches: Sequence[Batch]
    numbers: Sequence[int]

    @property
    def parts(self) -> list[OwnProblem]:
        return [OwnProblem(self.net, self.step, self.micro_batches, [number]) for number in self.numbers]

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(w, self.net.parameters())
        n, g, total = len(self.micro_batches), torch.zeros_like(w), 0.0
        for number in self.numbers:
            g, loss = self.step(self.net, self.micro_batches[number], g, n, number == n - 1)
            total += float(loss.detach())
        return total, g

    def loss(self, w: Tensor) -> float:
        return self.gradient(w)[0]


def by_hand(step: Reference, method: Any, steps: Sequence[Sequence[Batch]], lr: float) -> list[Tensor]:
    """SGD with the method: the weights after every step."""
    net = Net().double().train()
    w, weights = flat(net), []
    for number, micro_batches in enumerate(steps):
        handed = method(OwnProblem(net, step, micro_batches, range(len(micro_batches))), w, number == 0)
        w = w - lr * handed.gradient - (0 if handed.extra is None else lr * handed.extra)
        weights.append(w)
    return weights
