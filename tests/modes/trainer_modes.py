"""What the tests of the Trainer's own features share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import Batch, classification
from reference import Spec
from specs_of_modes import BASE, METHODS, named
from torch import nn

by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
as_stock = pytest.mark.parametrize("spec", [named("sam"), named("wsam-decoupled")], ids=str)
ITEMS = classification(64, torch.float32)
SGD = BASE.arguments()


def assert_stock_at_rho_0(train: Any, spec: Spec, model: nn.Module, items: Any, **options: Any) -> None:
    """With the replays really made, every step is bit for bit the stock Trainer's, and so is what is logged."""
    stock_options = {k.removeprefix("stock_"): v for k, v in options.items()}
    ours_options = {k: v for k, v in options.items() if not k.startswith("stock_")}
    stock = train(model, items, stock=True, **stock_options)
    ours = train(model, items, **ours_options | spec.arguments() | {"sam_rho": 0.0})
    assert len(stock.weights) == len(ours.weights) > 0
    assert all(torch.equal(a, b) for a, b in zip(stock.weights, ours.weights, strict=True))
    assert stock.series("loss") == ours.series("loss")
    assert set(ours.series("sharpness")) == {0.0}


def bert() -> nn.Module:
    """A tiny transformer with dropout."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=2, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config)


def documents(count: int = 32) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 30, (8,), generator=generator) for _ in range(count)]
    return [{"input_ids": row, "labels": row[0] % 2} for row in rows]
