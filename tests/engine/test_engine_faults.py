"""An exception at any point of any pass leaves the weights bit for bit, and the next step is an ordinary one."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from models import Net, Saboteur, accumulate, buffers_of, classification, steps_of
from reference import BASES, Base, Spec, by_name, flat
from torch import nn

PROBES = 4
METHODS = [
    *by_name("sam", "asam-k2", "wsam-coupled", "wsam-decoupled", "wsam-coupled-k3"),
    Spec("xsam", "xsam", {"rho": 0.3, "alpha_points": PROBES}),
    Spec("xsam-k3", "xsam", {"rho": 0.6, "steps": 3, "alpha_points": PROBES}),
]
ERRORS = [RuntimeError("boom"), KeyboardInterrupt("boom"), torch.OutOfMemoryError("boom")]


def raise_at(number: int, error: BaseException) -> Callable[..., Any]:
    """Raises when called for the n-th time, once; passes a gradient through otherwise."""

    def hook(n: int, *gradient: torch.Tensor) -> Any:
        if n == number:
            raise error
        return gradient[0] if gradient else None

    return hook


class Fault:
    """A model trained for one step, then one that fails at call `number` of `place`."""

    def __init__(self, spec: Spec, base: Base, accumulation: int, place: str, plain: Any):
        self.steps = steps_of(classification(48), 8, accumulation)
        self.plain, self.place = plain, place
        self.model = Net(Saboteur).double()
        self.optimizer = base.torch(self.model.parameters())
        self.method = spec.ours(self.model, self.optimizer)
        self.run(self.steps[0])

    @property
    def calls(self) -> int:
        """How many times the place has been reached."""
        return getattr(self.model.middle, f"{self.place}s")

    def run(self, step: Any) -> torch.Tensor:
        return self.plain(self.model, [step], self.optimizer, self.method)[0]

    def fail(self, number: int, error: BaseException) -> None:
        setattr(self.model.middle, f"on_{self.place}", raise_at(self.calls + number, error))
        with pytest.raises(type(error), match="boom"):
            self.run(self.steps[1])


def points(spec: Spec, place: str, accumulation: int) -> int:
    """How many times a step with a search comes past `place`."""
    passes = spec.settings.get("steps", 1) + 1
    return accumulation * (passes + PROBES * (spec.method == "xsam" and place == "forward"))


CASES = [
    pytest.param(spec, place, accumulation, id=f"{spec}-{place}-{accumulation}")
    for spec in METHODS
    for place in ("forward", "backward")
    for accumulation in (1, 3)
]


@pytest.mark.usually("^(sam|wsam-decoupled|xsam)-")
@pytest.mark.parametrize(("spec", "place", "accumulation"), CASES)
def test_weights_survive_an_exception_anywhere(spec: Spec, place: str, accumulation: int, plain: Any) -> None:
    """Weights, gradients and optimizer state as after the last step: the same step then goes through and equals the
    one of a run without any fault, without the gradients being cleared."""
    base = BASES[1]
    smooth = Fault(spec, base, accumulation, place, plain)
    expected = smooth.run(smooth.steps[1])
    total = points(spec, place, accumulation)
    for number in range(1, total + 1):
        fault = Fault(spec, base, accumulation, place, plain)
        before, ptrs = flat(fault.model), [p.data_ptr() for p in fault.model.parameters()]
        fault.fail(number, ERRORS[number % len(ERRORS)])
        assert torch.equal(flat(fault.model), before), number
        assert [p.data_ptr() for p in fault.model.parameters()] == ptrs
        assert all(p.grad is None for p in fault.model.parameters())
        assert torch.equal(fault.run(fault.steps[1]), expected), number


def test_the_points_are_all_of_them(plain: Any) -> None:
    """The enumeration above reaches the last call of the step, and no step has more."""
    for spec in METHODS:
        for place in ("forward", "backward"):
            fault = Fault(spec, BASES[0], 3, place, plain)
            calls = fault.calls
            fault.run(fault.steps[1])
            assert fault.calls - calls == points(spec, place, 3)


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_the_base_can_go_on_alone(spec: Spec, plain: Any) -> None:
    """After a failed step nothing of it is left in the optimizer: an ordinary step is bit for bit the base's."""
    fault = Fault(spec, BASES[1], 1, "forward", plain)
    twin = Net(Saboteur).double()
    optimizer = BASES[1].torch(twin.parameters())
    fault.fail(2, ERRORS[0])
    fault.optimizer.zero_grad()
    twin.load_state_dict(fault.model.state_dict())
    optimizer.load_state_dict(deepcopy(fault.optimizer.state_dict()))
    ours = plain(fault.model, fault.steps[1:2], fault.optimizer)
    assert torch.equal(ours[0], plain(twin, fault.steps[1:2], optimizer)[0])


@pytest.mark.parametrize("spec", by_name("wsam-decoupled"), ids=str)
def test_a_step_never_taken_leaves_nothing_behind(spec: Spec, plain: Any) -> None:
    """A backward whose optimizer step the user left out adds nothing to a later one."""
    fault = Fault(spec, BASES[1], 1, "forward", plain)
    smooth = Fault(spec, BASES[1], 1, "forward", plain)
    fault.method.backward(lambda: accumulate(fault.model, fault.steps[2][0], 1))
    fault.optimizer.zero_grad()
    assert torch.equal(fault.run(fault.steps[1]), smooth.run(smooth.steps[1]))


def test_a_step_never_taken_before_one_that_fails(plain: Any) -> None:
    """Nor does it add to the base optimizer's own step after that."""
    (spec,) = by_name("wsam-decoupled")
    fault = Fault(spec, BASES[1], 1, "forward", plain)
    twin = Net(Saboteur).double()
    optimizer = BASES[1].torch(twin.parameters())
    twin.load_state_dict(fault.model.state_dict())
    optimizer.load_state_dict(deepcopy(fault.optimizer.state_dict()))
    fault.method.backward(lambda: accumulate(fault.model, fault.steps[2][0], 1))
    fault.optimizer.zero_grad()
    fault.fail(2, ERRORS[0])
    fault.optimizer.zero_grad()
    ours = plain(fault.model, fault.steps[1:2], fault.optimizer)
    assert torch.equal(ours[0], plain(twin, fault.steps[1:2], optimizer)[0])


@pytest.mark.parametrize("scope", ["global", "micro_batch"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_earlier_gradient_survives_a_failed_step(scope: str, number: int) -> None:
    """What was in p.grad before the step is there after it, alone."""
    model = Net(Saboteur).double()
    optimizer = BASES[1].torch(model.parameters())
    method = Spec("wsam", "wsam", {"rho": 0.3, "scope": scope}).ours(model, optimizer)
    first, *halves = [micro for step in steps_of(classification(24), 8, 1) for micro in step]
    accumulate(model, first, 1)
    earlier = [p.grad.clone() for p in model.parameters()]
    model.middle.on_forward = raise_at(model.middle.forwards + number, ERRORS[0])
    with pytest.raises(RuntimeError, match="boom"):
        method.backward([lambda half=half: accumulate(model, half, 2) for half in halves])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), earlier, strict=True))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_a_failed_step_holds_on_to_nothing(spec: Spec, number: int, plain: Any) -> None:
    """Neither the closure nor, through it, the batch: out of memory, one wants them gone."""
    fault = Fault(spec, BASES[0], 1, "forward", plain)
    model, method = fault.model, fault.method
    failing = fault.calls + number

    def out_of_memory(n: int) -> None:
        if n == failing:
            raise RuntimeError("boom")

    model.middle.on_forward = out_of_memory

    def fail() -> weakref.ref:
        batch = {key: value.clone() for key, value in fault.steps[1][0].items()}
        with contextlib.suppress(RuntimeError):
            method.backward(lambda: accumulate(model, batch, 1))
        return weakref.ref(batch["x"])

    reference = fail()
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_random_stream_and_buffers_after_a_failed_replay(spec: Spec, number: int, plain: Any) -> None:
    """They stand where the first pass left them; grad and train mode are on."""
    fault = Fault(spec, BASES[0], 1, "forward", plain)
    # Fails after dropout has drawn its mask and BatchNorm has counted the batch.
    fault.model.middle = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(8), fault.model.middle).double()
    twin = deepcopy(fault.model)
    torch.manual_seed(4)
    accumulate(twin, fault.steps[1][0], 1)
    stream = torch.get_rng_state()
    saboteur = fault.model.middle[2]
    saboteur.on_forward = raise_at(saboteur.forwards + min(number, points(spec, "forward", 1)), ERRORS[1])
    torch.manual_seed(4)
    with pytest.raises(KeyboardInterrupt):
        fault.run(fault.steps[1])
    assert torch.equal(torch.get_rng_state(), stream)
    buffers = buffers_of(twin)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in buffers_of(fault.model).items())
    assert torch.is_grad_enabled()
    assert fault.model.training
