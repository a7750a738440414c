"""A method of a test's own, as a function of the step, in a plain loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from models import Net, accumulate, classification, steps_of
from torch import Tensor, nn

from hf_sharpness.loop import SharpnessAware
from hf_sharpness.methods import Method, Step

STEPS = steps_of(classification(48), 8)
Run = Callable[[Step], None]


@dataclasses.dataclass
class Own(Method):
    """Runs a function of the test."""

    name: ClassVar[str] = "own"
    paper: ClassVar[str] = ""
    scopes: ClassVar[tuple[str, ...]] = ("global", "device", "micro_batch")
    keeps: ClassVar[tuple[str, ...]] = ("one", "other")

    what: Any = None
    made: int = 0

    @property
    def replays(self) -> int:
        return self.made

    def run(self, step: Step) -> None:
        self.what(step)


class Loop:
    """A model in training with a function as its method."""

    def __init__(self, run: Run, replays: int = 0, model: nn.Module | None = None, **options: Any):
        self.model = Net().double() if model is None else model
        make = options.pop("optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        self.optimizer = make(self.model.parameters())
        self.method = SharpnessAware(Own(run, replays), self.model, self.optimizer, **options)

    def step(self, batch: Any = None, take: bool = True) -> None:
        self.method.backward(lambda: accumulate(self.model, STEPS[0][0] if batch is None else batch, 1), measure=True)
        if take:
            self.optimizer.step()
            self.optimizer.zero_grad()


def long(vector: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in vector]).clone()


def seen(run: Callable[[Step], Any], replays: int = 0, **options: Any) -> Any:
    """What a function of the step returns, in one step."""
    results: list[Any] = []
    Loop(lambda step: results.append(run(step)), replays, **options).step()
    return results[0]


def closure(model: nn.Module, scaler: Any) -> Tensor:
    loss = model(**STEPS[0][0])["loss"]
    scaler.scale(loss).backward()
    return loss.detach()


def run_backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


# How many passes.


def replaying(number: int) -> Run:
    def run(step: Step) -> None:
        for _ in range(number):
            step.climb(0.1)
            step.replay()

    return run
