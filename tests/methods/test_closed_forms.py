"""Updates worked out by hand on functions of one or two weights: XSAM's fallbacks and its search, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Record
from reference import BASES, Spec
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]


class Point(nn.Module):
    """A few weights, and a loss that is a function of them."""

    def __init__(self, *weights: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))


class Step:
    """One backward of a method on `loss` at `weights`, and the optimizer step after it (SGD, lr 1)."""

    def __init__(self, method: str, loss: Loss, weights: tuple[float, ...], **settings: Any):
        self.model = Point(*weights)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.method = Spec("", method, settings).ours(self.model, self.optimizer)
        self.record = Record()  # no pass takes back what another noted there

        def closure() -> Tensor:
            value = loss(self.model.w)
            self.record.items.append(value.item())
            if torch.is_grad_enabled():
                value.backward()
            return value

        self.loss = self.method.backward(closure, measure=True)
        self.grad = None if self.model.w.grad is None else self.model.w.grad.clone()
        self.before = self.model.w.detach().clone()
        self.optimizer.step()
        self.moved = self.before - self.model.w.detach()

    @property
    def probed(self) -> list[float]:
        return self.record.items


def close(actual: Any, *expected: float) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).flatten()
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def square(w: Tensor) -> Tensor:
    return 0.5 * (w**2).sum()


def bowl(w: Tensor) -> Tensor:
    """Curvatures 1 and 10."""
    return 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)


def test_sam_by_hand() -> None:
    """g = (3, 4), delta = .5 (.6, .8), g_s = w + delta."""
    step = Step("sam", square, (3.0, 4.0), rho=0.5)
    close(step.grad, 3.3, 4.4)
    close(step.loss, 12.5)


def test_asam_by_hand() -> None:
    """T = |w|, T g = (1, 4), T^2 g = (1, 8): delta = rho (1, 8) / sqrt(17)."""
    rho = 17**0.5 / 10
    step = Step("sam", square, (1.0, 2.0), rho=rho, adaptive=True)
    close(step.grad, 1.1, 2.8)


def test_wsam_by_hand() -> None:
    """gamma = .8: a = 4, h = -3 g + 4 g_s."""
    for mode in ("coupled", "decoupled"):
        step = Step("wsam", square, (3.0, 4.0), rho=0.5, gamma=0.8, mode=mode)
        close(step.moved, -9 + 4 * 3.3, -12 + 4 * 4.4)


def test_multi_step_by_hand() -> None:
    """Two steps of length rho/2 each, on a loss whose gradient turns: w_1 = (1.5, 0), g_1 = (0, 7)."""

    def turning(w: Tensor) -> Tensor:
        return torch.where(w[0] < 1.25, w[0], 7 * w[1])

    step = Step("sam", turning, (1.0, 0.0), rho=1.0, steps=2)
    close(step.grad, 0.0, 7.0)
    close(step.method.metrics["perturbation_norm"], 0.5 * 2**0.5)
    close(step.method.metrics["perturbed_loss"], 3.5)


def test_xsam_by_hand() -> None:
    """v0 and v1 at right angles: alpha = 1/2 is halfway between them, with the norm of g_1."""

    def corner(w: Tensor) -> Tensor:
        return torch.where(w[0] < 1.25, w[0], 6 * w[1])

    step = Step("xsam", corner, (1.0, 0.0), rho=1.0, alpha=0.5)
    close(step.grad, 6 / 2**0.5, 6 / 2**0.5)
    close(step.method.metrics["xsam_psi"], torch.pi / 2)
    step = Step("xsam", corner, (1.0, 0.0), rho=1.0, alpha=1.5)
    close(step.grad, -6 / 2**0.5, 6 / 2**0.5)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0, 2.0])
def test_parallel_directions_have_no_plane(alpha: float | None) -> None:
    """psi = 0: v(alpha) = v1; all probes tie, so the smallest alpha is chosen."""
    step = Step("xsam", square, (3.0, 4.0), rho=0.5, alpha=alpha)
    close(step.grad, 3.3, 4.4)
    assert float(step.method.alpha) == (alpha or 0.0)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5, 1.0, 2.0])
def test_opposed_directions_have_no_plane(alpha: float | None) -> None:
    """psi = pi: v(alpha) = v1, never the vanishing sum."""
    step = Step("xsam", lambda w: -square(w), (0.2, 0.0), rho=0.5, alpha=alpha)
    close(step.grad, 0.3, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_nearly_parallel_pairs_are_finite(seed: int) -> None:
    """An arccos without clamp gives NaN for about every fifth such pair."""
    torch.manual_seed(seed)
    w = tuple(torch.randn(50, dtype=torch.float64).tolist())
    step = Step("xsam", lambda w: square(w.float()).double(), w, rho=1e-3)
    assert step.grad.isfinite().all()
    torch.testing.assert_close(step.grad, step.before, rtol=1e-2, atol=1e-2)


def searched(loss: Loss, **settings: Any) -> float:
    """alpha* on a bowl plus `loss`, v0 and v1 well apart."""
    return float(Step("xsam", loss, (1.0, 0.3), rho=0.2, **settings).method.alpha)


def test_search_starts_below_every_loss() -> None:
    """The released code starts its maximum at 0, so that no probe of a negative loss counts."""
    assert searched(lambda w: bowl(w) - 1000.0) == searched(bowl) > 0


def test_search_follows_its_grid() -> None:
    assert searched(bowl, alpha_max=0.8, alpha_points=5) == pytest.approx(0.8)
    assert searched(bowl, alpha_max=3.0, alpha_points=2) in (0.0, 3.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_search_ignores_probes_that_are_not_finite(bad: float) -> None:
    """Probes at the far radius with w[1] above a bound fail: the best finite one is taken."""
    calm = Step("xsam", bowl, (1.0, 0.3), rho=0.2)
    bound = 0.69

    def cliff(w: Tensor) -> Tensor:
        return torch.where(w[1] > bound, torch.tensor(bad, dtype=w.dtype), bowl(w)) if far(w) else bowl(w)

    def far(w: Tensor) -> bool:
        return (w.detach() - torch.tensor([1.0, 0.3], dtype=w.dtype)).norm() > 0.3

    step = Step("xsam", cliff, (1.0, 0.3), rho=0.2, search="grid")
    probes = torch.tensor(step.probed[2:23])
    assert not probes.isfinite().all()
    assert float(step.method.alpha) != float(calm.method.alpha)
    best = torch.where(probes.isfinite(), probes, -torch.inf).argmax().item()
    assert float(step.method.alpha) == pytest.approx(best / 10)


def test_search_costs_one_forward_per_grid_point() -> None:
    assert len(Step("xsam", bowl, (1.0, 0.3), rho=0.2, search="grid").probed) == 2 + 21
    assert len(Step("xsam", bowl, (1.0, 0.3), rho=0.2).probed) <= 2 + 8
    assert len(Step("xsam", bowl, (1.0, 0.3), rho=0.2, alpha_points=5, steps=3).probed) == 4 + 5
    assert len(Step("xsam", bowl, (1.0, 0.3), rho=0.2, alpha=1.2).probed) == 2


def test_search_needs_no_graph() -> None:
    """Two passes with gradient, every probe without."""
    record = Record()

    def watched(w: Tensor) -> Tensor:
        record.items.append(torch.is_grad_enabled())
        return bowl(w)

    Step("xsam", watched, (1.0, 0.3), rho=0.2, search="grid")
    assert record.items == [True] * 2 + [False] * 21


def test_search_reaches_rho_max() -> None:
    """Probes lie on the circle of radius rho_max (2 rho unless told) around the weights."""
    for settings, radius in (({}, 0.4), ({"rho_max": 0.7}, 0.7)):
        record = Record()

        def watched(w: Tensor, record: Record = record) -> Tensor:
            record.items.append((w.detach() - torch.tensor([1.0, 0.3], dtype=w.dtype)).norm().item())
            return bowl(w)

        Step("xsam", watched, (1.0, 0.3), rho=0.2, search="grid", **settings)
        close(record.items, 0.0, 0.2, *[radius] * 21)


@pytest.mark.parametrize(("refresh", "expected"), [("epoch", [0, 6]), (3, [0, 3, 6, 9]), (1, list(range(10)))], ids=str)
def test_refresh(refresh: str | int, expected: list[int]) -> None:
    """The first backward searches; afterwards every so many, or the one after `start_epoch()`."""
    model = Point(1.0, 0.3)
    optimizer = BASES[0].torch(model.parameters())
    method = Spec("", "xsam", {"rho": 0.2, "refresh": refresh}).ours(model, optimizer)
    record = Record()

    def closure() -> Tensor:
        record.forwards += 1
        loss = bowl(model.w)
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    searches = []
    for step in range(10):
        if step == 6 and refresh == "epoch":
            method.start_epoch()
        record.forwards = 0
        method.backward(closure)
        if record.forwards > 2:
            searches.append(step)
        optimizer.step()
        optimizer.zero_grad()
    assert searches == expected


@pytest.mark.parametrize(
    ("method", "settings"), [("sam", {}), ("wsam", {"mode": "coupled"}), ("wsam", {"mode": "decoupled"}), ("xsam", {})]
)
def test_metrics(method: str, settings: dict[str, Any]) -> None:
    step = Step(method, square, (3.0, 4.0), rho=0.5, **settings)
    metrics = {key: float(value) for key, value in step.method.metrics.items()}
    assert metrics["loss"] == pytest.approx(12.5)
    assert metrics["perturbed_loss"] == pytest.approx(0.5 * 5.5**2)
    assert metrics["sharpness"] == pytest.approx(0.5 * 5.5**2 - 12.5)
    assert metrics["ascent_grad_norm"] == pytest.approx(5.0)
    assert metrics["perturbation_norm"] == pytest.approx(0.5)
    if method == "xsam":
        assert metrics["xsam_alpha"] == 0.0
        assert metrics["xsam_psi"] == pytest.approx(0.0, abs=1e-6)
    if settings.get("mode") == "decoupled":
        assert metrics["wsam_step_ratio"] == pytest.approx(9 * 0.5 / 5)


def test_zero_gradient_moves_nothing() -> None:
    """At a critical point there is nowhere to climb: no NaN, no step."""
    variants = [("sam", {}), ("sam", {"adaptive": True}), ("xsam", {})]
    for method, settings in [*variants, ("wsam", {"mode": "coupled"}), ("wsam", {"mode": "decoupled"})]:
        step = Step(method, square, (0.0, 0.0), rho=0.5, **settings)
        close(step.moved, 0.0, 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"rho_max": -1.0},
        {"rho_max": float("nan")},
        {"alpha": float("nan")},
        {"alpha_max": float("inf")},
        {"alpha_points": 0},
        {"refresh": 0},
        {"refresh": "yearly"},
        {"steps": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    model = Point(1.0)
    (value,) = settings.values()
    with pytest.raises(ValueError, match=str(value)):
        Spec("", "xsam", settings).ours(model, BASES[0].torch(model.parameters()))
