"""The model that all models with state of their own are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 6


class Stateful(nn.Module):
    """Two layers; a subclass's ``factor`` depends on the state, and ``state`` shows it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.prepare()

    def prepare(self) -> None: ...

    def factor(self, h: Tensor) -> Any:
        return 1.0

    def state(self) -> Any:
        return None

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.first(x))
        logits = self.last(h * self.factor(h) if self.training else h)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}
