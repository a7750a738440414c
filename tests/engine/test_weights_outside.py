"""Closures that train weights and buffers outside the model: those get what one pass gives them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from habits import BATCH, EXACT, Closure
from models import Net, accumulate
from reference import BASES, Spec, by_name, flat
from torch import Tensor, nn
from torch.nn import functional as F

from hf_sharpness import SAM

four_methods = pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)


class Proxies(nn.Module):
    """A loss with weights of its own, and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.norm, self.weight = nn.BatchNorm1d(3), nn.Parameter(torch.randn(3, 3))
        self.double()

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.normalize(self.norm(features)) @ self.weight, labels)


def joint(model: Net, loss_of: nn.Module) -> Closure:
    def closure() -> Tensor:
        loss = loss_of(model(BATCH["x"])["logits"], BATCH["labels"])
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("steps", [1, 3])
@four_methods
def test_weights_outside_the_model_get_the_gradient_of_one_pass(spec: Spec, steps: int) -> None:
    """Stepped by an optimizer of their own, by what stock steps them with; also what gathers over several steps."""
    ours, stock = (Net().double(), Proxies()), (Net().double(), Proxies())
    optimizer = BASES[0].torch(ours[0].parameters())
    method = spec.ours(ours[0], optimizer)
    for _ in range(steps):
        stock[0].load_state_dict(ours[0].state_dict())
        joint(*stock)()
        method.backward(joint(*ours))
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(ours[1].parameters(), stock[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **EXACT)


@four_methods
def test_a_tensor_that_is_no_parameter(spec: Spec) -> None:
    """A learned temperature beside the model."""
    model = Net().double()
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(BATCH["x"])["logits"] * temperature, BATCH["labels"])
        loss.backward()
        return loss

    (expected,) = torch.autograd.grad(
        F.cross_entropy(model(BATCH["x"])["logits"] * temperature, BATCH["labels"]), [temperature]
    )
    spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1)).backward(closure)
    torch.testing.assert_close(temperature.grad, expected, **EXACT)


@four_methods
def test_weights_outside_the_model_that_come_later(spec: Spec) -> None:
    """Used from a step on that is not watched: found where the closure's objects are, not in the loss's graph."""
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    temperatures = [torch.ones((), dtype=torch.float64, requires_grad=True)]
    method = spec.ours(model, optimizer)
    for step in range(3):

        def loss_now(step: int = step) -> Tensor:
            logits = model(BATCH["x"])["logits"]
            return F.cross_entropy(logits * temperatures[0] if step == 2 else logits, BATCH["labels"])

        def closure(loss_now: Callable[[], Tensor] = loss_now) -> Tensor:
            loss = loss_now()
            loss.backward()
            return loss

        if step == 2:
            (expected,) = torch.autograd.grad(loss_now(), temperatures)
        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(temperatures[0].grad, expected, **EXACT)


@four_methods
def test_weights_outside_the_model_in_a_group_of_the_optimizer_are_perturbed(spec: Spec) -> None:
    """They are trained by it: the same as one module with both in it."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = Net().double(), Proxies()

    runs = []
    for together in (True, False):
        both = Both()
        optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
        method = spec.ours(both if together else both.model, optimizer)
        for _ in range(2):
            method.backward(joint(both.model, both.loss))
            optimizer.step()
            optimizer.zero_grad()
        runs.append(flat(both))
    torch.testing.assert_close(*runs, **EXACT)


def test_what_is_outside_is_not_kept_alive() -> None:
    model = Net().double()
    method: Any = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loss_of = Proxies()
    method.backward(joint(model, loss_of))
    assert len(method.engine.habits.others()) == 3
    del loss_of
    method.backward(lambda: accumulate(model, BATCH, 1))
    gc.collect()
    assert method.engine.habits.others() == []


@pytest.mark.parametrize("affine", [True, False])
@four_methods
def test_buffers_outside_the_model_count_one_pass(spec: Spec, affine: bool) -> None:
    """A BatchNorm in the loss, with weights of its own or without, from the first step on."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.BatchNorm1d(3, affine=affine).double())

        def forward(self, features: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.inner(features), labels)

    ours, stock = (Net().double(), Normed()), (Net().double(), Normed())
    optimizer = BASES[0].torch(ours[0].parameters())
    method = spec.ours(ours[0], optimizer)
    for _ in range(3):
        stock[0].load_state_dict(ours[0].state_dict())
        joint(*stock)()
        method.backward(joint(*ours))
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(ours[1].buffers(), stock[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)
