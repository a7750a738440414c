"""Parameters of less common types, gradients of extreme size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import Net, classification, steps_of
from reference import SPECS, Base, Spec, by_name, flat, reference_run
from torch import Tensor, nn

from hf_sharpness import SAM, WSAM

STEPS = steps_of(classification(32), 8)
SGD = Base("sgd", lr=0.1)
Plain = Callable[..., list[Tensor]]


class Fourier(nn.Module):
    """A layer with complex weights, or with the same numbers as pairs of real ones."""

    def __init__(self, complex_: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 3).double()
        pairs = torch.randn(5, 2, dtype=torch.float64)
        self.filter = nn.Parameter(torch.view_as_complex(pairs) if complex_ else pairs)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        filter_ = self.filter if self.filter.is_complex() else torch.view_as_complex(self.filter)
        h = torch.fft.irfft(torch.fft.rfft(torch.tanh(self.first(x))) * filter_, n=8)
        logits = self.last(h)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("base", [SGD, Base("adamw", lr=0.01, weight_decay=0.1)], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_complex_weight_is_two_real_ones(spec: Spec, base: Base, plain: Plain) -> None:
    model = Fourier(complex_=True)
    expected = reference_run(Fourier(complex_=False), STEPS, spec.reference(), base.reference(), [base.lr] * len(STEPS))
    optimizer = base.torch(model.parameters())
    plain(model, STEPS, optimizer, spec.ours(model, optimizer))
    real = [torch.view_as_real(p) if p.is_complex() else p for p in model.parameters()]
    torch.testing.assert_close(
        torch.cat([p.detach().reshape(-1) for p in real]), expected[-1].weights, rtol=1e-9, atol=1e-9
    )


class Weighted(nn.Module):
    """A loss with a weight of another precision, before or after those of the net."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        if first:
            self.log_weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.net = Net().float()
        if not first:
            self.log_weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.net(x.float(), labels)
        return {"loss": out["loss"] * torch.exp(-self.log_weight[0]) + self.log_weight[0], "logits": out["logits"]}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("spec", by_name("sam", "asam", "wsam-coupled", "wsam-decoupled", "xsam-k3"), ids=str)
def test_float64_beside_float32(spec: Spec, first: bool, plain: Plain) -> None:
    class Double(Weighted):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = self.net(x, labels)
            return {"loss": out["loss"] * torch.exp(-self.log_weight[0]) + self.log_weight[0]}

    model = Weighted(first)
    expected = reference_run(Double(first), STEPS, spec.reference(), SGD.reference(), [0.1] * len(STEPS))
    optimizer = SGD.torch(model.parameters())
    plain(model, STEPS, optimizer, spec.ours(model, optimizer))
    torch.testing.assert_close(flat(model).double(), expected[-1].weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spec", by_name("sam", "asam", "wsam-coupled", "xsam-beyond"), ids=str)
def test_a_gradient_whose_squares_overflow_is_climbed_all_the_same(spec: Spec) -> None:
    """Methods are homogeneous in the loss: 2^70 times the loss makes 2^70 times the gradient, by the same steps."""
    batch = STEPS[0][0]
    handed = []
    for scale in (1.0, 2.0**70):
        model = Net().float()
        optimizer = SGD.torch(model.parameters())
        method = spec.ours(model, optimizer)

        def closure(model: nn.Module = model, scale: float = scale) -> Tensor:
            loss = model(batch["x"].float(), batch["labels"])["loss"] * scale
            if torch.is_grad_enabled():
                loss.backward()
            return loss

        method.backward(closure, measure=True)
        assert float(method.metrics["perturbation_norm"]) > 0
        handed.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]) / scale)
    torch.testing.assert_close(handed[1], handed[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_added_after_the_step_may_be_as_large(masked: bool) -> None:
    """Decoupled WSAM's term, also where some of the gradient is masked: the same movement, at so small a rate."""
    batch = STEPS[0][0]
    moved = []
    for scale in (1.0, 2.0**70):
        model = Net().float()
        start = flat(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / scale)
        (spec,) = by_name("wsam-decoupled")

        def closure(model: nn.Module = model, scale: float = scale) -> Tensor:
            loss = model(batch["x"].float(), batch["labels"])["loss"] * scale
            loss.backward()
            return loss

        spec.ours(model, optimizer).backward(closure)
        if masked:
            model.first.weight.grad[:4] = 0
        optimizer.step()
        moved.append(flat(model) - start)
        assert (model.first.weight.reshape(-1)[:24] == start[:24]).all() == masked
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_a_gamma_too_small_for_its_reciprocal_is_the_base(mode: str, plain: Plain) -> None:
    ends = []
    for gamma in (1e-29, 0.0):
        model = Net().float()
        optimizer = SGD.torch(model.parameters())
        method = WSAM(model, optimizer, mode=mode, gamma=gamma)
        steps = [[{"x": b["x"].float(), "labels": b["labels"]} for b in step] for step in STEPS]
        ends.append(plain(model, steps, optimizer, method)[-1])
    assert torch.equal(*ends)


def test_the_smallest_gamma_that_counts_is_finite(plain: Plain) -> None:
    model, twin = Net().float(), Net().float()
    steps = [[{"x": b["x"].float(), "labels": b["labels"]} for b in step] for step in STEPS]
    optimizer = SGD.torch(model.parameters())
    weights = plain(model, steps, optimizer, WSAM(model, optimizer, mode="coupled", gamma=1.1e-20))
    expected = plain(twin, steps, SGD.torch(twin.parameters()))
    torch.testing.assert_close(weights[-1], expected[-1], rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_still_not_climbed() -> None:
    model = Net().float()
    optimizer = SGD.torch(model.parameters())
    method, before = SAM(model, optimizer), flat(model)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        loss = model(STEPS[0][0]["x"].float(), STEPS[0][0]["labels"])["loss"] * float("inf")
        loss.backward()
        return loss

    method.backward(closure)
    assert len(calls) == 1
    assert torch.equal(flat(model), before)
