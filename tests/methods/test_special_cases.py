"""Every row of the special-case tables of WSAM (arXiv 2305.15817) and XSAM (arXiv 2603.10048)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Net, Saboteur, classification, steps_of
from reference import BASES, Base, Plain, Problem, Sam, Spec, Xsam, flat, linear_schedule, mean_losses, reference_run

STEPS = steps_of(classification(64), 8, epochs=4)
FACTORS = linear_schedule(1.0, 3, len(STEPS))
RHO = {"rho": 0.2}
COUPLED, DECOUPLED = RHO | {"mode": "coupled"}, RHO | {"mode": "decoupled"}


@pytest.fixture
def run(plain: Any) -> Callable[..., torch.Tensor]:
    """Weights after every one of 32 steps, of a method (None: the base alone) on a base; clipped unless told."""

    def run(base: Base, method: str | None = None, max_norm: float | None = 0.5, **settings: Any) -> torch.Tensor:
        model = Net(Saboteur).double()
        optimizer = base.torch(model.parameters())
        sharpness = Spec("", method, settings).ours(model, optimizer) if method else None
        weights = torch.stack(plain(model, STEPS, optimizer, sharpness, FACTORS, max_norm))
        run.forwards = model.middle.forwards
        return weights

    return run


def reference(base: Base, method: Any, max_norm: float | None = 0.5) -> torch.Tensor:
    lrs = [base.lr * factor for factor in FACTORS]
    return torch.stack([r.weights for r in reference_run(Net(), STEPS, method, base.reference(), lrs, max_norm)])


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


every_base = pytest.mark.parametrize("base", BASES, ids=str)


@every_base
@pytest.mark.parametrize("mode", ["coupled", "decoupled", "preconditioned", "auto"])
def test_gamma_0_is_the_base_bit_for_bit(run: Any, base: Base, mode: str) -> None:
    assert torch.equal(run(base, "wsam", **RHO, mode=mode, gamma=0.0), run(base))
    run(base, "wsam", **RHO, mode=mode, gamma=0.0)
    assert run.forwards == len(STEPS), "gamma = 0 needs no second pass"


@every_base
def test_coupled_gamma_half_is_sam(run: Any, base: Base) -> None:
    weights = run(base, "wsam", **COUPLED, gamma=0.5)
    assert_same(weights, run(base, "sam", **RHO))
    assert_same(weights, reference(base, Sam(**RHO)))


@every_base
def test_decoupled_gamma_half_is_sam_only_without_momentum(run: Any, base: Base) -> None:
    decoupled, sam = run(base, "wsam", None, **DECOUPLED, gamma=0.5), run(base, "sam", None, **RHO)
    if base.name == "sgd":
        assert_same(decoupled, sam)
    else:
        assert (decoupled[-1] - sam[-1]).norm() > 1e-4


@pytest.mark.parametrize("gamma", [0.3, 0.8, 0.95])
def test_plain_sgd_makes_both_modes_one_update(run: Any, gamma: float) -> None:
    base = Base("sgd", lr=0.1, weight_decay=0.01)
    assert_same(run(base, "wsam", None, **COUPLED, gamma=gamma), run(base, "wsam", None, **DECOUPLED, gamma=gamma))


@pytest.mark.parametrize("gamma", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_gamma_outside_its_range_is_named(gamma: float) -> None:
    model = Net()
    with pytest.raises(ValueError, match=str(gamma)):
        Spec("", "wsam", {"gamma": gamma}).ours(model, BASES[0].torch(model.parameters()))


@pytest.mark.parametrize("method", ["sam", "wsam", "xsam"])
@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_rho_must_be_a_length(method: str, rho: float) -> None:
    model = Net()
    with pytest.raises(ValueError, match=str(rho)):
        Spec("", method, {"rho": rho}).ours(model, BASES[0].torch(model.parameters()))


@every_base
@pytest.mark.parametrize("steps", [1, 3])
def test_xsam_alpha_1_is_sam(run: Any, base: Base, steps: int) -> None:
    weights = run(base, "xsam", **RHO, alpha=1.0, steps=steps)
    assert_same(weights, run(base, "sam", **RHO, steps=steps))
    assert_same(weights, reference(base, Sam(**RHO, steps=steps)))


@every_base
def test_xsam_alpha_0_is_sgd_plus(run: Any, base: Base) -> None:
    """Direction of g_0, norm of g_1."""

    def sgd_plus(problem: Problem, w: torch.Tensor, refresh: bool) -> Any:
        handed = Plain()(problem, w, refresh)
        g = handed.gradient
        g_1 = problem.gradient(w + RHO["rho"] * g / g.norm())[1]
        handed.gradient = g_1.norm() * g / g.norm()
        return handed

    assert_same(run(base, "xsam", **RHO, alpha=0.0), reference(base, sgd_plus))


@every_base
def test_rho_0_is_the_base(run: Any, base: Base) -> None:
    """Bit for bit where the update has no arithmetic of its own, within rounding elsewhere; the replay is made."""
    plain = run(base)
    assert torch.equal(run(base, "sam", rho=0.0), plain)
    assert run.forwards == 2 * len(STEPS)
    assert torch.equal(run(base, "wsam", rho=0.0, mode="decoupled", gamma=0.9), plain)
    assert_same(run(base, "wsam", rho=0.0, mode="coupled", gamma=0.9), plain)
    for settings in ({}, {"steps": 3}, {"alpha": 0.0}, {"alpha": 1.7}, {"adaptive": True}):
        assert_same(run(base, "xsam", rho=0.0, **settings), plain)


def handed(method: str, scale: float = 1.0, **settings: Any) -> tuple[torch.Tensor, Problem, torch.Tensor]:
    """What one backward leaves in p.grad, the problem, and the weights."""
    model = Net().double()
    problem, w = Problem(Net().double(), STEPS[0], mean_losses), flat(model)

    def closure() -> torch.Tensor:
        loss = scale * model(**STEPS[0][0])["loss"]
        loss.backward()
        return loss

    Spec("", method, settings).ours(model, BASES[0].torch(model.parameters())).backward(closure)
    assert torch.equal(flat(model), w)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), problem, w


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.5, 1.0, 2.0])
def test_xsam_hands_over_the_norm_of_g_k(alpha: float | None, steps: int) -> None:
    gradient, problem, w = handed("xsam", **RHO, alpha=alpha, steps=steps)
    _, g_k = Sam(**RHO, steps=steps).climb(problem, w)
    torch.testing.assert_close(gradient.norm(), g_k.norm(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.6, 0.9, 0.99])
def test_coupled_weighs_both_gradients(gamma: float) -> None:
    """Above gamma = 1/2 the plain gradient gets a negative coefficient: intended."""
    gradient, problem, w = handed("wsam", **COUPLED, gamma=gamma)
    clean, g_s = Sam(**RHO).climb(problem, w)
    a = gamma / (1 - gamma)
    torch.testing.assert_close(gradient, (1 - a) * clean.gradient + a * g_s, rtol=1e-10, atol=1e-12)
    g = clean.gradient
    coefficients = torch.linalg.lstsq(torch.stack([g, g_s], 1), gradient[:, None]).solution
    assert (coefficients[0] < 0) == (gamma > 0.5) or gamma == 0.5


@pytest.mark.parametrize("scale", [1024.0, 0.5])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("sam", RHO), ("sam", RHO | {"adaptive": True}), ("wsam", COUPLED), ("wsam", DECOUPLED), ("xsam", RHO)],
)
def test_homogeneous_in_the_loss_scale(method: str, settings: dict[str, Any], scale: float) -> None:
    scaled, unscaled = handed(method, scale, **settings)[0], handed(method, **settings)[0]
    torch.testing.assert_close(scaled / scale, unscaled, rtol=1e-9, atol=1e-11)


def test_sam_is_xsam_is_coupled_wsam_but_no_method_is_another_by_accident(run: Any) -> None:
    """The variants really differ where they should."""
    runs = {
        "base": run(BASES[2]),
        "sam": run(BASES[2], "sam", **RHO),
        "asam": run(BASES[2], "sam", **RHO, adaptive=True),
        "k3": run(BASES[2], "sam", **RHO, steps=3),
        "coupled": run(BASES[2], "wsam", **COUPLED, gamma=0.9),
        "decoupled": run(BASES[2], "wsam", **DECOUPLED, gamma=0.9),
        "xsam": run(BASES[2], "xsam", **RHO),
    }
    names = list(runs)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert (runs[one][-1] - runs[other][-1]).norm() > 1e-5, (one, other)


def test_reference_is_not_the_base() -> None:
    assert not torch.allclose(reference(BASES[0], Xsam(**RHO)), reference(BASES[0], Plain()))
