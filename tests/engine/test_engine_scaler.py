"""fp16 loss scaling: an overflow in any pass skips the step, otherwise the scale makes no difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, Saboteur, classification, steps_of
from reference import BASES, Base, Spec, by_name, flat

METHODS = by_name("sam", "sam-k3", "asam", "wsam-coupled", "wsam-decoupled", "wsam-decoupled-k3", "xsam", "xsam-k3")
METHODS += by_name("wsam-preconditioned")
STEPS = steps_of(classification(64), 8)
MAX_NORM = 0.4


class Scaled:
    """A loop with torch.amp.GradScaler; backward number n of a step overflows for n in `overflow`.

    With `clip` the gradients are unscaled and clipped before the step, otherwise the step unscales (a fused optimizer
    in its own kernel). With `told` the method knows of the scaler.
    """

    def __init__(self, spec: Spec, base: Base, clip: bool = True, told: bool = True, **options: Any):
        self.model = Net(Saboteur).double()
        self.optimizer = base.torch(self.model.parameters(), **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
        self.clip = clip
        settings = spec.settings | ({"scaler": self.scaler} if told else {})
        self.method = Spec(spec.name, spec.method, settings).ours(self.model, self.optimizer)

    def step(self, batch: Any, overflow: frozenset[int] = frozenset(), bad: float = float("inf")) -> None:
        saboteur, start = self.model.middle, self.model.middle.backwards
        saboteur.on_backward = lambda n, gradient: gradient * (bad if n - start in overflow else 1.0)

        def closure() -> torch.Tensor:
            loss = self.model(**batch)["loss"]
            if torch.is_grad_enabled():
                self.scaler.scale(loss).backward()
            return loss.detach()

        self.method.backward(closure, measure=True)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def state(self) -> list[torch.Tensor]:
        tensors = [v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        return [flat(self.model), *[tensor.clone() for tensor in tensors]]


LOOPS: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip-untold": {"told": False},
    "fused-clip": {"fused": True},
    "no-clip": {"clip": False},
    "fused-no-clip": {"fused": True, "clip": False},
}
every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
every_method = pytest.mark.parametrize("spec", METHODS, ids=str)


@pytest.mark.usually("^(sam|wsam-decoupled|xsam-k3)-")
@every_loop
@pytest.mark.parametrize("base", BASES[1:], ids=str)
@every_method
def test_without_overflow_the_scale_makes_no_difference(spec: Spec, base: Base, loop: Any, plain: Any) -> None:
    """Also when the scale grows between steps, and with clipping after the unscaling."""
    scaled, model = Scaled(spec, base, **loop), Net().double()
    optimizer, max_norm = base.torch(model.parameters()), MAX_NORM if loop.get("clip", True) else None
    weights = plain(model, STEPS, optimizer, spec.ours(model, optimizer), max_norm=max_norm)
    for (batch,) in STEPS:
        scaled.step(batch)
    assert scaled.scaler.get_scale() > 2.0**12
    torch.testing.assert_close(flat(scaled.model), weights[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.usually("^(sam|wsam-decoupled|xsam-k3)-")
@every_loop
@pytest.mark.parametrize("overflow", [{1}, {2}, {1, 2}], ids=["ascent", "replay", "both"])
@every_method
def test_an_overflow_skips_the_step(spec: Spec, overflow: set[int], loop: Any) -> None:
    """Weights and optimizer state untouched, scale halved, and the steps after it as if it had not been tried."""
    scaled, smooth = Scaled(spec, BASES[2], **loop), Scaled(spec, BASES[2], **loop)
    bad = float("inf") if overflow == {2} else float("nan")
    for (batch,) in STEPS[:2]:
        scaled.step(batch)
        smooth.step(batch)
    before, scale = scaled.state(), scaled.scaler.get_scale()
    scaled.step(STEPS[2][0], frozenset(overflow), bad)
    assert all(torch.equal(now, then) for now, then in zip(scaled.state(), before, strict=True))
    assert scaled.scaler.get_scale() == scale / 2
    for (batch,) in STEPS[3:5]:
        scaled.step(batch)
        smooth.step(batch)
    torch.testing.assert_close(flat(scaled.model), flat(smooth.model), rtol=1e-9, atol=1e-9)


@every_method
def test_norms_are_reported_without_the_scale(spec: Spec, plain: Any) -> None:
    scaled, model = Scaled(spec, BASES[0]), Net().double()
    optimizer = BASES[0].torch(model.parameters())
    method = spec.ours(model, optimizer)
    plain(model, STEPS[:1], optimizer, method, max_norm=MAX_NORM)
    scaled.step(STEPS[0][0])
    assert set(scaled.method.metrics) == set(method.metrics)
    for key, value in method.metrics.items():
        assert float(scaled.method.metrics[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), key


@every_method
def test_an_ascent_overflow_does_not_perturb(spec: Spec) -> None:
    """The non-finite gradient stays where it is and no forward pass sees non-finite weights."""
    scaled = Scaled(spec, BASES[0])
    seen: list[bool] = []
    scaled.model.register_forward_pre_hook(lambda module, args: seen.append(bool(flat(module).isfinite().all())))
    scaled.step(STEPS[0][0], frozenset({1}))
    assert all(seen)


@pytest.mark.parametrize("spec", by_name("xsam", "xsam-k3"), ids=str)
def test_an_overflow_does_not_spoil_the_search(spec: Spec) -> None:
    """alpha* is a number of the grid afterwards."""
    scaled = Scaled(spec, BASES[0])
    scaled.step(STEPS[0][0], frozenset({2}))
    scaled.step(STEPS[1][0])
    assert 0.0 <= float(scaled.method.alpha) <= 2.0


@pytest.mark.parametrize("spec", by_name("xsam"), ids=str)
def test_a_search_lost_to_an_overflow_is_made_up_for(spec: Spec) -> None:
    """The first step overflowed before alpha* could be searched: the next one searches."""
    scaled, smooth = Scaled(spec, BASES[0]), Scaled(spec, BASES[0])
    scaled.step(STEPS[0][0], frozenset({1}))
    scaled.step(STEPS[1][0])
    smooth.step(STEPS[1][0])
    assert float(scaled.method.alpha) == float(smooth.method.alpha)
