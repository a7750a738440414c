"""Micro-batches of a step that find the model, or what is trained beside it, in different states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import Spec
from torch import Tensor, nn

STEPS = steps_of(classification(32), 4, 2)
SAM = Spec("sam", "sam", {"rho": 0.2})


class Critic:
    """Beyond 64 KiB, up to which a tensor is copied in any case; trained by every micro-batch."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(3, 4_000), nn.Linear(4_000, 1)).double()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)

    def __call__(self, logits: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        (self.net(logits.detach()) - 1).pow(2).mean().backward()
        self.optimizer.step()
        return self.net(logits).mean()


class Teacher:
    """An average of itself and what it sees, as large as a critic, and frozen."""

    def __init__(self) -> None:
        self.mean = nn.Parameter(torch.zeros(3_000, 3, dtype=torch.float64), requires_grad=False)

    def __call__(self, logits: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.5).add_(logits.mean(0))
        return (logits - self.mean[0]).pow(2).mean()


class Alternating:
    """Trains one layer with the first micro-batch of a step alone, or with the last."""

    def __init__(self) -> None:
        self.calls = 0

    def prepare(self, model: Any) -> None:
        self.calls += 1
        model.first.requires_grad_(self.calls % 4 in (1, 0))

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.new_zeros(())


def passed(model: Any, other: Any, batch: Any) -> Tensor:
    output = model(**batch)
    loss = (output["loss"] + other(output["logits"])) / 2
    loss.backward()
    return loss


def by_hand(model: Any, other: Any, step: Any, prepare: Callable[[Any, Any], None]) -> list[Tensor | None]:
    """SAM's gradient: at moved weights every micro-batch finds what it found at first."""
    before = []
    for batch in step:
        prepare(model, other)
        before.append(copy.deepcopy((model, other)))
        passed(model, other, batch)
    clean = [p.grad for p in model.parameters()]
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in clean if g is not None]))
    summed: list[Tensor | None] = [None] * len(clean)
    for (moved, its_other), batch in zip(before, step, strict=True):
        for parameter, gradient in zip(moved.parameters(), clean, strict=True):
            parameter.grad = None
            if gradient is not None:
                parameter.data += 0.2 * gradient / norm
        passed(moved, its_other, batch)
        for number, parameter in enumerate(moved.parameters()):
            if parameter.grad is not None:
                summed[number] = parameter.grad + (0 if summed[number] is None else summed[number])
    return summed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [Critic, Teacher, Alternating])
def test_each_finds_again_what_it_found_at_first(kind: Any) -> None:
    model, other = Net().double(), kind()
    model.beside = other
    method = SAM.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def prepare(model: Any, other: Any) -> None:
        if isinstance(other, Alternating):
            other.prepare(model)

    for step in STEPS:
        expected = by_hand(*copy.deepcopy((model, other)), step, prepare)
        engine = method.engine
        engine.begin()
        for number, batch in enumerate(step):
            prepare(model, other)
            engine.record(lambda batch=batch: passed(model, other, batch), last=number == len(step) - 1)
        flags = [p.requires_grad for p in model.parameters()]
        engine.finish()
        assert [p.requires_grad for p in model.parameters()] == flags
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        engine.optimizer.step()
        engine.optimizer.zero_grad()


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("outside", ["loss", "logits"])
def test_a_graph_that_is_made_outside_of_the_closure_is_told(outside: str, retain: bool) -> None:
    model = Net().double()
    method = SAM.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    weights = [p.detach().clone() for p in model.parameters()]
    batch = STEPS[0][0]
    output = model(**batch)

    def closure() -> Tensor:
        loss = output["loss"] if outside == "loss" else output["logits"].square().mean()
        loss.backward(retain_graph=retain)
        return loss

    with pytest.raises(RuntimeError, match=r"computed outside of what is repeated.*forward, loss and backward"):
        method.backward(closure)
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("trains", [True, False])
def test_what_a_pass_itself_freezes_or_not_once(trains: bool) -> None:
    """Guarded by a flag, which is not put back: the step is as if it had been so at its beginning."""
    gradients = []
    for at_once in (True, False):
        model = Net().double()
        method = SAM.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model.first.requires_grad_(trains if at_once else not trains)
        done = {"done": at_once}

        def closure(model: Any = model, done: Any = done) -> Tensor:
            if not done["done"]:
                done["done"] = True
                model.first.requires_grad_(trains)
            loss = model(**STEPS[0][0])["loss"]
            loss.backward()
            return loss

        method.backward(closure)
        assert all(p.requires_grad == trains for p in model.first.parameters())
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
