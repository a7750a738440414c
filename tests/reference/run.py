"""Train a model by a reference method: the effective-batch loss as a function of one flat float64 vector."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .bases import SGD, AdamW, clip_coefficient
from .methods import Handed, Plain, Xsam

Batch = dict[str, Tensor]
Losses = Callable[[nn.Module, Sequence[Batch]], list[Tensor]]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def flat(model: nn.Module) -> Tensor:
    """All trainable weights in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in trainable(model)])


def linear_schedule(lr: Any, warmup: int, total: int) -> list[Any]:
    """The learning rate of every step: up linearly from 0 during warm-up, then down linearly to 0."""
    up = [lr * step / max(1, warmup) for step in range(warmup)]
    return up + [lr * (total - step) / max(1, total - warmup) for step in range(warmup, total)]


def mean_losses(model: nn.Module, micro_batches: Sequence[Batch]) -> list[Tensor]:
    """Each micro-batch's share of the mean loss over all items (micro-batches of equal size)."""
    return [model(**batch)["loss"] / len(micro_batches) for batch in micro_batches]


def token_losses(model: nn.Module, micro_batches: Sequence[Batch]) -> list[Tensor]:
    """Each micro-batch's share of the mean loss over all target tokens: label -100 is none, nor is the first."""
    tokens = [int((batch["labels"][:, 1:] != -100).sum()) for batch in micro_batches]
    return [model(**batch)["loss"] * n / sum(tokens) for batch, n in zip(micro_batches, tokens, strict=True)]


class Problem:
    def __init__(self, model: nn.Module, micro_batches: Sequence[Batch], losses: Losses):
        self.model, self.micro_batches, self.losses = model, micro_batches, losses
        self.indices: Collection[int] = range(len(micro_batches))

    @property
    def parts(self) -> list[Problem]:
        """The share of each micro-batch alone."""
        parts = [Problem(self.model, self.micro_batches, self.losses) for _ in self.micro_batches]
        for index, part in enumerate(parts):
            part.indices = [index]
        return parts

    def blocks(self, number: int) -> list[Problem]:
        """The micro-batches in as many equal stretches (the ranks'), each alone."""
        size = len(self.micro_batches) // number
        blocks = [Problem(self.model, self.micro_batches, self.losses) for _ in range(number)]
        for place, block in enumerate(blocks):
            block.indices = range(place * size, (place + 1) * size)
        return blocks

    def first(self, number: int) -> Problem:
        """The first micro-batches alone, as many."""
        problem = Problem(self.model, self.micro_batches, self.losses)
        problem.indices = list(self.indices)[:number]
        return problem

    def _loss(self, w: Tensor) -> Tensor:
        vector_to_parameters(w, trainable(self.model))
        losses = self.losses(self.model, self.micro_batches)
        return sum(losses[index] for index in self.indices)

    def loss(self, w: Tensor) -> float:
        with torch.no_grad():
            return self._loss(w).item()

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        loss = self._loss(w)
        parameters = trainable(self.model)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        return loss.item(), parameters_to_vector(gradients)


@dataclass
class Record:
    """One optimizer step: the weights after it and what was seen on the way."""

    weights: Tensor
    handed: Handed
    step_ratio: float = 0.0


def reference_run(
    model: nn.Module,
    steps: Sequence[Sequence[Batch]],
    method: Any = None,
    base: SGD | AdamW | None = None,
    lrs: Sequence[float | Tensor] | None = None,
    max_norm: float | None = None,
    losses: Losses = mean_losses,
    epoch_starts: Collection[int] = (0,),
) -> list[Record]:
    """One record per step; every step is a list of micro-batches. One clip coefficient, from the base gradient."""
    method, base = method or Plain(), base or SGD()
    model = deepcopy(model).double().train()
    w = flat(model)
    records = []
    for step, micro_batches in enumerate(steps):
        lr = 0.1 if lrs is None else lrs[step]
        micro_batches = [{k: v.double() if v.is_floating_point() else v for k, v in b.items()} for b in micro_batches]
        by_step = isinstance(method, Xsam) and isinstance(method.refresh, int)
        refresh = step % method.refresh == 0 if by_step else step in epoch_starts
        handed = method(Problem(model, micro_batches, losses), w, refresh)
        clip = clip_coefficient(handed.gradient, max_norm)
        after_base = base.step(w, clip * handed.gradient, lr)
        record = Record(after_base, handed)
        if handed.extra is not None:
            extra = lr * clip * handed.extra / (base.preconditioner() if handed.preconditioned else 1.0)
            record.weights = after_base - extra
            record.step_ratio = (extra.norm() / (after_base - w).norm()).item()
        w = record.weights
        records.append(record)
    return records
