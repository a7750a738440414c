"""The guard: one more pass at the unperturbed weights, compared with the first."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from models import Record, classification, steps_of
from models.stateful import MODELS, Stateful
from reference import Spec, flat
from torch import Tensor, nn

pytestmark = pytest.mark.checked

METHODS = [
    Spec("sam", "sam", {"rho": 0.05}),
    Spec("sam-k2", "sam", {"rho": 0.05, "steps": 2}),
    Spec("sam-micro_batch", "sam", {"rho": 0.05, "scope": "micro_batch"}),
    Spec("wsam-coupled", "wsam", {"rho": 0.05, "mode": "coupled"}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.05, "mode": "decoupled"}),
    Spec("xsam", "xsam", {"rho": 0.05, "alpha_points": 3}),
]
every_method = pytest.mark.parametrize("spec", METHODS, ids=str)
STEPS = [step[0] for step in steps_of(classification(48), 8, epochs=20)]


class Hidden(Stateful):
    """Draws from what cannot be rewound."""

    def prepare(self) -> None:
        self.numbers, self.middle = frozenset([itertools.count(1)]), nn.Identity()

    def factor(self, h: Tensor) -> Tensor:
        return self.middle(torch.ones_like(h) / next(*self.numbers))


def run(model: nn.Module, spec: Spec, steps: int = 2, step: bool = True, **options: Any) -> tuple[Tensor, list[str]]:
    """The weights after some steps, and the warnings."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Spec(spec.name, spec.method, spec.settings | options).ours(model, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in STEPS[:steps]:

            def closure(batch: Any = batch) -> Tensor:
                loss = model(**batch)["loss"]
                loss.backward()
                return loss

            method.backward(closure)
            if step:
                optimizer.step()
                optimizer.zero_grad()
    return flat(model), [str(w.message) for w in caught if "does not repeat" in str(w.message)]


@every_method
@pytest.mark.parametrize("name", MODELS)
def test_quiet_where_passes_repeat(name: str, spec: Spec) -> None:
    """And the step is the one without the check, bit for bit."""
    weights, said = run(MODELS[name]().double(), spec)
    assert not said
    if name != "OfTheScript":
        assert torch.equal(weights, run(MODELS[name]().double(), spec, check="off")[0])


@every_method
def test_a_pass_that_does_not_repeat_is_told(spec: Spec) -> None:
    _, said = run(Hidden().double(), spec)
    assert len(said) == 1
    assert "The first module that returned something else is middle (Identity)" in said[0]
    assert "its gradient differs by" in said[0]
    assert not run(Hidden().double(), spec, check="off")[1]


def test_error() -> None:
    model = Hidden().double()
    before = flat(model)
    with pytest.raises(RuntimeError, match="does not repeat the first"):
        run(model, METHODS[0], check="error")
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_what_is_less_than_a_twentieth_of_the_perturbations_effect(rho: float) -> None:
    """Is let pass, unless the perturbation has none."""

    class Slight(Hidden):
        def factor(self, h: Tensor) -> Tensor:
            return 1 + 1e-4 * (next(*self.numbers) % 2) * torch.ones_like(h)

    assert len(run(Slight().double(), Spec("sam", "sam", {"rho": rho}))[1]) == (rho == 0)


class Counted(Stateful):
    def prepare(self) -> None:
        self.record = Record()

    def factor(self, h: Tensor) -> float:
        self.record.forwards += 1
        return 1.0


def test_when() -> None:
    """Steps 1, 10 and 100; and again until the optimizer has stepped."""
    model = Counted().double()
    run(model, METHODS[0], steps=101)
    assert model.record.forwards == 2 * 101 + 3
    model = Counted().double()
    run(model, METHODS[0], steps=3, step=False)
    assert model.record.forwards == 3 * 3


def test_a_gradient_that_is_not_finite_is_not_compared() -> None:
    class Overflowing(Hidden):
        def factor(self, h: Tensor) -> Any:
            number = next(*self.numbers)
            return float("inf") if number == 1 else 1.0 / number

    model = Overflowing().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = METHODS[0].ours(model, optimizer)

    def closure() -> Tensor:
        loss = model(**STEPS[0])["loss"]
        loss.backward()
        return loss

    method.backward(closure)
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match="does not repeat"):
        method.backward(closure)


def limited(parameter: Tensor) -> None:
    parameter.grad.clamp_(-0.02, 0.02)


@pytest.mark.parametrize("steps", [1, 2])
def test_hooks_that_change_what_is_in_the_gradient(steps: int) -> None:
    """Run within the backward pass, where nobody sees them: the check does, and then every pass begins without one."""
    model, twin = Stateful().double(), Stateful().double()
    for parameter in [*model.parameters(), *twin.parameters()]:
        parameter.register_post_accumulate_grad_hook(limited)
    weights, warned = run(model, Spec("wsam", "wsam", {"rho": 0.3, "mode": "coupled", "gamma": 0.6}), steps)
    assert not warned
    for batch in STEPS[:steps]:
        start = [p.detach().clone() for p in twin.parameters()]
        clean = gradient(twin, batch)
        length = torch.cat([g.flatten() for g in clean]).norm()
        with torch.no_grad():
            for parameter, g in zip(twin.parameters(), clean, strict=True):
                parameter += 0.3 * g / length
        moved = gradient(twin, batch)
        with torch.no_grad():
            for parameter, w, g, g_s in zip(twin.parameters(), start, clean, moved, strict=True):
                parameter.copy_(w - 0.1 * (-0.5 * g + 1.5 * g_s))
    torch.testing.assert_close(weights, flat(twin), rtol=1e-12, atol=1e-13)


def gradient(model: nn.Module, batch: Any) -> list[Tensor]:
    model.zero_grad()
    model(**batch)["loss"].backward()
    return [p.grad.clone() for p in model.parameters()]
