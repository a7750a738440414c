"""State in all sorts of places: every pass finds what the first one found, and a step leaves what one pass leaves."""

from __future__ import annotations

import threading
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from models import classification, places, state_in_tensors, stateful, steps_of
from models.stateful import Loss, Stateful, same
from passes_of_state import BITWISE, ITEMS, STEPS, closures_of, every_method, run, trained
from reference import Spec, flat
from torch import Tensor, nn

MODELS = stateful.MODELS | places.MODELS
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
@pytest.mark.parametrize("accumulation", [1, 3])
@every_method
def test_rho_0_is_stock(spec: Spec, accumulation: int, name: str) -> None:
    """Weights bit for bit (within rounding where a method adds up gradients), the state too, and no sharpness."""
    stock, states, _ = run(MODELS[name]().double(), None, accumulation)
    weights, ours, sharpness = run(MODELS[name]().double(), spec, accumulation)
    assert not same(stock, flat(MODELS[name]().double()))
    if spec in BITWISE:
        assert torch.equal(weights, stock)
        assert same(ours, states)
    torch.testing.assert_close(weights, stock, rtol=1e-9, atol=1e-12)
    assert max(map(abs, sharpness)) < (1e-15 if spec in BITWISE else 1e-6)


@pytest.mark.parametrize("name", [*stateful.DEEP_COPIES, *places.DEEP_COPIES])
def test_the_gradient_at_moved_weights(name: str) -> None:
    """That of a copy of the model, state included, taken before the step and moved by hand."""
    model = MODELS[name]().double()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    method = Spec("sam", "sam", {"rho": 0.3}).ours(model, optimizer)
    for (batch,) in steps_of(ITEMS, 8)[:STEPS]:
        clean, moved = deepcopy(model), deepcopy(model)
        clean(**batch)["loss"].backward()
        climbed = [p.grad.flatten() for p in trained(clean) if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat(climbed))
        with torch.no_grad():
            for parameter, source in zip(trained(moved), trained(clean), strict=True):
                if source.grad is not None:
                    parameter += 0.3 * source.grad / norm
        moved(**batch)["loss"].backward()
        method.backward(closures_of(model, [batch]))
        for parameter, expected in zip(trained(model), trained(moved), strict=True):
            if expected.grad is not None:
                torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-9, atol=1e-12)
        assert same(model.state(), clean.state())
        optimizer.step()
        optimizer.zero_grad()


@every_method
def test_a_loss_module_that_a_closure_refers_to(spec: Spec) -> None:
    stock, states, _ = run(Stateful().double(), None, 2, Loss().double())
    weights, ours, _ = run(Stateful().double(), spec, 2, Loss().double())
    torch.testing.assert_close(weights, stock, rtol=1e-9, atol=1e-12)
    if spec in BITWISE:
        assert torch.equal(weights, stock)
        assert same(ours, states)


class LateQueue(state_in_tensors.Queue):
    """Fills from the third pass on, after the steps that are looked at closely."""

    def factor(self, h: Tensor) -> Any:
        self.seen = getattr(self, "seen", 0) + 1
        return super().factor(h) if self.seen > 2 else 1.0


def test_a_large_buffer_that_changes_late_is_noticed() -> None:
    """That step's further passes see it changed, which a warning says; it ends right, as do later steps."""
    stock, states, _ = run(LateQueue().double(), None)
    with pytest.warns(UserWarning, match=r"model.queue .* changed in a training step for the first time") as caught:
        weights, ours, sharpness = run(LateQueue().double(), BITWISE[0], noticed=True)
    assert len([w for w in caught if "queue" in str(w.message)]) == 1
    assert same(ours, states)
    assert sharpness[1] == sharpness[3] == 0
    assert torch.equal(weights, stock), "what a row of the queue is overwritten with is the same"


def test_an_array_on_the_memory_of_weights() -> None:
    """It is moved with them: put back, it would undo the perturbation."""

    class FromArray(Stateful):
        def prepare(self) -> None:
            self.array = np.linspace(-1, 1, 18).reshape(3, 6)
            self.last.weight = nn.Parameter(torch.from_numpy(self.array))
            self.rows = self.array[::-2]

    model, twin = FromArray().double(), FromArray().double()
    assert np.shares_memory(model.last.weight.detach().numpy(), model.rows)
    twin.array = twin.rows = None
    spec = Spec("sam", "sam", {"rho": 0.3})
    assert torch.equal(run(model, spec)[0], run(twin, spec)[0])


def test_what_is_large_and_does_not_change_is_not_copied() -> None:
    model = state_in_tensors.Queue()
    model.register_buffer("bank", torch.zeros(2**20))
    frozen = nn.Linear(512, 512)
    model.frozen = frozen.requires_grad_(False)
    method = BITWISE[0].ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = steps_of(classification(8, torch.float32), 8)[0][0]
    for _ in range(3):
        method.backward(closures_of(model, [batch]))
    method.engine.state.begin(4)
    moment = method.engine.state.take(lambda: None)
    saved = sum(w.saved.numel() for w in moment.tensors.by_region.values() if w.saved is not None)
    assert saved <= model.queue.nbytes + 2**16


def test_what_services_hold_is_left_alone() -> None:
    """Objects that hold a lock are written to by others at any time."""

    class Logger:
        def __init__(self) -> None:
            self.lock, self.lines = threading.Lock(), []

    model, logger = Stateful().double(), Logger()
    model.first.register_forward_hook(lambda *_: logger.lines.append(1))
    with pytest.warns(UserWarning, match=r"logger \(a Logger\) holds a lock"):
        run(model, BITWISE[1], noticed=True)
    assert len(logger.lines) == STEPS * 3
