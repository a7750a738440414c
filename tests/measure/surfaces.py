"""Losses with known sharpness: quadratics of which everything is known in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_sharpness.measure.batches import Batches
from hf_sharpness.measure.surface import Surface


class Quadratic(nn.Module):
    """L(w) = <w, A w>/2 + <b, w>, plus `shift`, the mean over examples whose `b` differ, in two parameters."""

    def __init__(self, matrix: Tensor, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.head = nn.Parameter(start[:1].clone())
        self.rest = nn.Parameter(start[1:].clone())

    def forward(self, b: Tensor) -> dict[str, Tensor]:
        w = torch.cat([self.head, self.rest])
        return {"loss": w @ self.matrix @ w / 2 + (b @ w).mean()}


MATRIX = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 0.25]], dtype=torch.float64)
START = torch.tensor([0.4, -1.1, 2.0], dtype=torch.float64)
EXAMPLES = [{"b": torch.tensor(row, dtype=torch.float64)} for row in ([1.0, 0.0, -2.0], [0.0, 0.5, 0.0], [0.5, 1, 1])]
MEAN = torch.stack([example["b"] for example in EXAMPLES]).mean(0)


def collate(examples: list[Any]) -> Any:
    return {key: torch.stack([torch.as_tensor(example[key]) for example in examples]) for key in examples[0]}


def loss_at(w: Tensor) -> float:
    """The loss over all examples, in plain torch."""
    return float(w @ MATRIX @ w / 2 + MEAN @ w)


GRADIENT = MATRIX @ START + MEAN


def quadratic(size: int = 2) -> Surface:
    """The quadratic's surface, in batches of unequal size."""
    return Surface(Quadratic(MATRIX, START), Batches(EXAMPLES, collate, size))


def flat(vector: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in vector])
