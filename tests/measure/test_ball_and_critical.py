"""Sharpness, the worst loss in a ball and critical sharpness, against closed forms on quadratics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from surfaces import EXAMPLES, GRADIENT, MATRIX, MEAN, START, Quadratic, collate, flat, loss_at, quadratic

from hf_sharpness.measure.ball import sharpness, worst
from hf_sharpness.measure.batches import Batches
from hf_sharpness.measure.critical import critical_sharpness
from hf_sharpness.measure.surface import Surface


def test_loss_and_gradient_are_means_over_all_examples_whatever_the_batches() -> None:
    for size in (1, 2, 3):
        with quadratic(size) as surface:
            loss, gradient = surface.gradient()
            assert loss == pytest.approx(loss_at(START), rel=1e-12)
            torch.testing.assert_close(flat(gradient), GRADIENT, rtol=1e-12, atol=0)
            assert surface.loss((0.3, gradient)) == pytest.approx(loss_at(START + 0.3 * GRADIENT), rel=1e-12)
            assert surface.loss() == loss


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_is_that_of_the_formula(adaptive: bool) -> None:
    with quadratic() as surface:
        loss, gradient = surface.gradient()
        found = sharpness(surface, loss, gradient, [0.01, 0.5, 3.0], adaptive)
    scale = START.abs() if adaptive else torch.ones(3, dtype=torch.float64)
    for entry, rho in zip(found, [0.01, 0.5, 3.0], strict=True):
        length = (scale * GRADIENT).norm()
        delta = rho * scale**2 * GRADIENT / length
        assert entry.rho == rho
        assert entry.loss == pytest.approx(loss_at(START + delta), rel=1e-11)
        assert entry.sharpness == pytest.approx(loss_at(START + delta) - loss_at(START), rel=1e-9)
        assert entry.linear == pytest.approx(float(rho * length), rel=1e-11)


@pytest.mark.parametrize("rho", [0.05, 0.5, 4.0])
def test_the_worst_loss_is_the_maximum_over_the_ball(rho: float) -> None:
    """On a convex quadratic: the trust region's own equation, solved in the eigenbasis."""
    values, axes = np.linalg.eigh(MATRIX.numpy())
    b = axes.T @ GRADIENT.numpy()
    distance = lambda t: np.linalg.norm(b / (t - values)) - rho  # noqa: E731
    multiplier = brentq(distance, values[-1] + 1e-12, values[-1] + np.linalg.norm(b) / rho + 1, xtol=1e-14)
    delta = torch.from_numpy(axes @ (b / (multiplier - values)))
    with quadratic() as surface:
        loss, gradient = surface.gradient()
        found = worst(surface, loss, gradient, rho, steps=60)
        assert surface.norm(found.displacement) <= rho * (1 + 1e-12)
        # The multiplier's equation gives the boundary's maximum of sum(v x^2 / 2 + b x).
        assert found.loss == pytest.approx(loss_at(START + delta), rel=1e-6)
        assert found.loss >= sharpness(surface, loss, gradient, [rho])[0].loss


@pytest.mark.parametrize("name", ["gradient", "signs", "skewed"])
def test_critical_sharpness_of_a_quadratic_is_a_rayleigh_quotient(name: str) -> None:
    update = {
        "gradient": GRADIENT,
        "signs": GRADIENT.sign(),
        "skewed": GRADIENT + torch.tensor([5.0, 0.0, -0.1], dtype=torch.float64),
    }[name]
    if update @ GRADIENT <= 0:
        update = -update
    expected = float(update @ MATRIX @ update / (GRADIENT @ update))
    with quadratic() as surface:
        loss, gradient = surface.gradient()
        vector = [update[:1], update[1:]]
        for guess in (None, 1e-4, 100.0):
            found = critical_sharpness(surface, loss, gradient, vector, guess)
            assert found.sharpness == pytest.approx(expected, rel=1e-6)
            assert found.step == pytest.approx(2 / expected, rel=1e-6)
            assert not found.note
            assert found.passes <= (4 if guess is None else 10)


class Quartic(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def forward(self, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.w**4).sum() + 0.3 * torch.sin(9 * self.w).sum()}


def test_critical_sharpness_where_the_loss_is_no_quadratic() -> None:
    value = lambda w: w**4 + 0.3 * math.sin(9 * w)  # noqa: E731
    slope = 4 + 2.7 * math.cos(9)
    # The first rise above L(w), found by a scan and then exactly.
    etas = np.linspace(1e-3, 5, 200_000) / abs(slope)
    first = next(e for e in etas if value(1 - e * slope) > value(1.0))
    exact = brentq(lambda e: value(1 - e * slope) - value(1.0), first * 0.999, first, xtol=1e-14)
    with Surface(Quartic(), Batches(EXAMPLES, collate, 3)) as surface:
        loss, gradient = surface.gradient()
        found = critical_sharpness(surface, loss, gradient, gradient, guess=first / 3)
    assert found.step == pytest.approx(exact, rel=0.02)


def test_critical_sharpness_says_where_there_is_none() -> None:
    with quadratic() as surface:
        loss, gradient = surface.gradient()
        found = critical_sharpness(surface, loss, gradient, [-t for t in gradient])
        assert (found.sharpness, found.step) == (None, 0.0)
        assert "rises" in found.note
    falling = torch.zeros(3, 3, dtype=torch.float64)
    with Surface(Quadratic(falling, START), Batches(EXAMPLES, collate, 3)) as surface:
        loss, gradient = surface.gradient()
        found = critical_sharpness(surface, loss, gradient, gradient)
        torch.testing.assert_close(flat(gradient), MEAN)
    assert found.sharpness == 0.0
    assert found.step is None
    assert "does not rise" in found.note
