"""The methods that every mode is tried with, small tasks for them, and how a mode's scope is put into a spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from models import Batch, Net, classification, collate, sentences
from reference import Base, Spec, by_name
from torch import Tensor

METHODS = by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam")
DEEP = by_name("sam-k3", "wsam-coupled-k3", "wsam-decoupled-k3", "xsam-k3")
BASE = Base("sgd-momentum", lr=0.05, momentum=0.9, weight_decay=0.01)
SCOPES = ("global", "device", "micro_batch")
MAX_NORM = 0.5


def scoped(spec: Spec, scope: str) -> Spec:
    return replace(spec, name=f"{scope}-{spec.name}", settings=spec.settings | {"scope": scope})


SCOPED = [scoped(spec, scope) for scope in SCOPES for spec in METHODS if scope == "global" or spec.method != "xsam"]

ADAM = Base("adamw", lr=0.01, weight_decay=0.1)
PRECONDITIONED = [scoped(*by_name("wsam-preconditioned"), scope) for scope in SCOPES]
"""To be tried around ADAM: around BASE it is the decoupled mode."""


PARTS = [
    replace(spec, name=f"{spec.name}-part", settings=spec.settings | {"fraction": 0.5})
    for spec in SCOPED
    if spec.method != "xsam" and not spec.name.startswith("micro_batch")
]
"""With further passes over half of the micro-batches."""


def between(spec: Spec, total: int) -> Spec:
    """Of 5 steps the second and the third, of 3 the second: those before and after are the base optimizer's own."""
    settings = {"start": 0.2, "stop": 0.6, "total_steps": total}
    return replace(spec, name=f"{spec.name}-between-of-{total}", settings=spec.settings | settings)


BETWEEN = [between(spec, 5) for spec in METHODS]
BETWEEN_OF_3 = [between(spec, 3) for spec in METHODS]
SCOPED_BETWEEN = [between(spec, 5) for spec in SCOPED]


EVERY_ONE = [*METHODS, *DEEP, *SCOPED, *PRECONDITIONED, *BETWEEN, *BETWEEN_OF_3, *SCOPED_BETWEEN, *PARTS]


def without_decay(base: Base) -> Base:
    return replace(base, weight_decay=0.0)


def named(name: str) -> Spec:
    """A spec of the lists above by name."""
    return next(spec for spec in EVERY_ONE if spec.name == name)


class Branching(Net):
    """Takes its extra layer only where a batch's `branch` is set: in the others its weights get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.extra = torch.nn.Linear(8, 8)

    def forward(self, x: Tensor, labels: Tensor, branch: Tensor) -> Batch:
        h = torch.tanh(self.first(x))
        if branch.any():
            h = h + self.extra(h)
        logits = self.last(h)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def rank_batches(rank: int, steps: int, accumulation: int, size: int = 4, **extra: Any) -> list[list[Batch]]:
    """The micro-batches of one rank, step by step."""
    items = classification(2 * steps * accumulation * size, seed=5)
    chunks = [items[start : start + size] for start in range(rank * size, len(items), 2 * size)]
    batches = [collate(chunk) | extra for chunk in chunks]
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def token_items() -> list[Batch]:
    """Sentences with different numbers of targets, whose first token is none either way of counting them."""
    items = sentences(80)
    for item in items:
        item["labels"][0] = -100
    return items


def joined(scope: str, by_rank: list[list[list[Batch]]]) -> list[list[Batch]]:
    """The steps of a single process with the same updates: its micro-batches are the parts that climb alone."""
    steps = []
    for parts in zip(*by_rank, strict=True):
        if scope == "device":
            parts = [[{key: torch.cat([batch[key] for batch in part]) for key in part[0]}] for part in parts]
        steps.append([batch for part in parts for batch in part])
    return steps


def reference_of(spec: Spec) -> Any:
    """The reference method; a rank that climbs alone is to it what a micro-batch is."""
    settings = dict(spec.settings)
    if settings.get("scope") == "device":
        settings["scope"] = "micro_batch"
    return replace(spec, settings=settings).reference()


def assert_third_step_skipped(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Of two ranks, after five steps with a GradScaler of which the third overflowed."""
    before, skipped, after = first["weights"][1:4]
    assert torch.equal(before, skipped)
    assert not torch.equal(skipped, after)
    assert first["weights"][-1].isfinite().all()
    assert first["scales"] == second["scales"] == [1024.0, 1024.0, 512.0, 512.0, 512.0]
    assert set(first["steps"]) == set(second["steps"]) == {4}
