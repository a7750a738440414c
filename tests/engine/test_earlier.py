"""Gradients that are in p.grad when a step begins: added to what the method hands over, whatever the method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, accumulate, classification, steps_of
from reference import SPECS, Spec, by_name, flat
from torch import Tensor, nn

DATA = steps_of(classification(32), 8)
BATCH, MEMORY = DATA[0][0], DATA[1][0]
EXACT = {"rtol": 1e-12, "atol": 1e-13}
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def handed_over(spec: Spec, closures: Any = None, before: Any = None) -> tuple[list[Tensor], Any]:
    """What is in p.grad after `method.backward`, and the movement of the weights by a step of SGD with it."""
    model = Net().double()
    start = flat(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = spec.ours(model, optimizer)
    if before is not None:
        before(model)
    method.backward((closures or one)(model))
    found = gradients(model)
    optimizer.step()
    return found, flat(model) - start


def one(model: nn.Module) -> Any:
    return lambda: accumulate(model, BATCH, 1)


def two(model: nn.Module) -> Any:
    return [lambda b=b: accumulate(model, b, 2) for b in (BATCH, MEMORY)]


def memory(model: nn.Module) -> None:
    accumulate(model, MEMORY, 1)


def twice_memory(model: nn.Module) -> None:
    accumulate(model, MEMORY, 1)
    accumulate(model, DATA[2][0], 1)


@pytest.mark.parametrize("before", [memory, twice_memory])
@pytest.mark.parametrize("closures", [one, two])
@every_spec
def test_it_is_added(spec: Spec, closures: Any, before: Any) -> None:
    """The gradient, and with decoupled WSAM's term the step, are the method's own plus the plain gradient."""
    plain = Net().double()
    before(plain)
    method, step = handed_over(spec, closures)
    found, moved = handed_over(spec, closures, before)
    for both, own, extra in zip(found, method, gradients(plain), strict=True):
        torch.testing.assert_close(both, own + extra, **EXACT)
    extra = torch.cat([g.flatten() for g in gradients(plain)])
    torch.testing.assert_close(moved, step - extra, **EXACT)


@pytest.mark.parametrize(
    "spec",
    [Spec(s.name, s.method, s.settings | {"scope": "micro_batch"}) for s in SPECS if s.method != "xsam"],
    ids=str,
)
def test_it_is_added_in_scope_micro_batch(spec: Spec) -> None:
    test_it_is_added(spec, two, memory)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_parameters_outside_the_optimizer(spec: Spec) -> None:
    """Theirs is that of a plain backward pass, added to what was there."""
    model, twin = Net().double(), Net().double()
    method = spec.ours(model, torch.optim.SGD(model.last.parameters(), lr=0.1))
    for net in (model, twin):
        memory(net)
    method.backward(one(model))
    one(twin)()
    torch.testing.assert_close(model.first.weight.grad, twin.first.weight.grad, **EXACT)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_zeros_of_zero_grad_stay_for_a_module_that_a_step_does_not_use(spec: Spec, momentum: float) -> None:
    """`zero_grad(set_to_none=False)`: the base optimizer decays an unused layer and moves it by its momentum."""

    class Sometimes(Net):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                self.extra = nn.Linear(6, 3)
            self.used = True

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            logits = self.last(self.features(x)) + (self.extra(x) if self.used else 0)
            return {"loss": nn.functional.cross_entropy(logits, labels)}

    moved = []
    for with_method in (False, True):
        model = Sometimes().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum, weight_decay=0.1)
        method = spec.ours(model, optimizer)
        for number, (batch,) in enumerate(DATA):
            model.used = number == 0
            closure = lambda model=model, batch=batch: accumulate(model, batch, 1)  # noqa: E731
            method.backward(closure) if with_method and number else closure()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        moved.append(flat(model.extra))
    torch.testing.assert_close(*moved, **EXACT)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_an_exception_leaves_them(spec: Spec) -> None:
    model = Net().double()
    method = spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    memory(model)
    expected = gradients(model)

    def fails() -> Tensor:
        accumulate(model, BATCH, 1)
        raise KeyError("in the data")

    with pytest.raises(KeyError):
        method.backward(fails)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), expected, strict=True))


@pytest.mark.parametrize("scope", ["global", "micro_batch"])
@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_the_tensors_that_were_there_take_the_gradient(spec: Spec, scope: str) -> None:
    """As autograd's own do: views of one long tensor, which the loop goes on with, are still p.grad."""
    if scope == "micro_batch" and spec.method == "xsam":
        return
    expected, _ = handed_over(spec, one)
    model = Net().double()
    long = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for parameter, piece in zip(model.parameters(), long.split([p.numel() for p in model.parameters()]), strict=True):
        parameter.grad = piece.view_as(parameter)
    spec = Spec(spec.name, spec.method, {**spec.settings, "scope": scope})
    spec.ours(model, torch.optim.SGD(model.parameters(), lr=1.0)).backward(one(model))
    torch.testing.assert_close(long, torch.cat([g.reshape(-1) for g in expected]), **EXACT)


def test_an_expanded_gradient_that_was_there() -> None:
    """It is none that anything can be added to."""
    model = Net().double()
    (spec,) = by_name("sam")
    expected, _ = handed_over(spec, one)
    for parameter in model.parameters():
        parameter.grad = torch.ones((), dtype=torch.float64).expand_as(parameter)
    spec.ours(model, torch.optim.SGD(model.parameters(), lr=1.0)).backward(one(model))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient + 1, **EXACT)
