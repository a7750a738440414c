"""What a method of one's own finds in a step: where the training is, the base optimizer's state; and its passes."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from method_in_loop import STEPS, Loop, Own, closure, long, replaying, seen
from models import Net, accumulate
from reference import flat

from hf_sharpness.loop import SharpnessAware
from hf_sharpness.methods import Method, Step

pytestmark = pytest.mark.filterwarnings("ignore:method.backward was called again")  # nothing is trained here


# Where the training is.


def test_number_progress_and_learning_rate() -> None:
    facts: list[tuple[float, ...]] = []
    loop = Loop(
        lambda step: facts.append((step.number, step.progress, step.learning_rate, step.peak_learning_rate)),
        total_steps=4,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, [0.0, 1.0, 0.5, 0.25, 0.0].__getitem__)
    for _ in range(4):
        loop.step()
        scheduler.step()
    assert facts == [(0, 0.0, 0.0, 0.1), (1, 0.25, 0.1, 0.1), (2, 0.5, 0.05, 0.1), (3, 0.75, 0.025, 0.1)]


def test_without_a_schedule_the_learning_rate_is_its_own_peak() -> None:
    assert seen(lambda step: step.peak_learning_rate) == 0.1


def test_progress_ends_at_one() -> None:
    seen_progress: list[float] = []
    loop = Loop(lambda step: seen_progress.append(step.progress), total_steps=1)
    for _ in range(3):
        loop.step()
    assert seen_progress == [0.0, 1.0, 1.0]


def test_progress_without_a_length_is_refused() -> None:
    loop = Loop(lambda step: print(step.progress))
    before = flat(loop.model)
    with pytest.raises(ValueError, match="total_steps"):
        loop.step()
    assert torch.equal(flat(loop.model), before)


@pytest.mark.parametrize("total", [0, -1, 2.5, "3"])
def test_a_length_that_is_none_is_refused(total: Any) -> None:
    with pytest.raises(ValueError, match=f"total_steps={total!r}"):
        Loop(lambda step: None, total_steps=total)


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    loop = Loop(lambda step: print(step.learning_rate))
    loop.optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="SGD finds its own"):
        loop.step()


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_loss_scale(scale: float | None) -> None:
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    loop = Loop(lambda step: scales.append(float(step.loss_scale)), scaler=scaler)
    scales: list[float] = []
    loop.method.backward(lambda: closure(loop.model, torch.amp.GradScaler("cpu", enabled=False)))
    assert scales == [scale or 1.0]


@pytest.mark.parametrize(("announced", "made"), [(0, 1), (1, 0), (1, 2), (3, 2)])
def test_another_number_of_passes_than_announced_is_an_error(announced: int, made: int) -> None:
    loop = Loop(replaying(made), announced)
    before = flat(loop.model)
    with pytest.raises(RuntimeError, match=rf"'own' makes .* the {announced} further passes .*`replays_of\(step\)`"):
        loop.step()
    assert torch.equal(flat(loop.model), before)


@dataclasses.dataclass
class EveryOther(Own):
    """A pass more in every other step."""

    def replays_of(self, step: Step) -> Any:
        return self.made if step.number % 2 else 0

    def run(self, step: Step) -> None:
        if step.replays:
            replaying(step.replays)(step)


def test_a_step_without_a_pass_is_the_base_optimizers() -> None:
    """and has no perturbed loss to report."""
    losses = []
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SharpnessAware(EveryOther(made=2), model, optimizer)
    twin = deepcopy(model)
    for number in range(4):
        plain = deepcopy(model)
        accumulate(plain, STEPS[number][0], 1)
        method.backward(lambda n=number: accumulate(model, STEPS[n][0], 1))
        same = all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
        assert same == (number % 2 == 0)
        losses.append("perturbed_loss" in method.metrics)
        optimizer.step()
        optimizer.zero_grad()
    assert losses == [False, True, False, True]
    assert not torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("announced", [-1, 1.0, None, True])
def test_a_number_of_passes_that_is_none_is_an_error(announced: Any) -> None:
    model = Net().double()
    method = SharpnessAware(EveryOther(made=announced), model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.backward(lambda: accumulate(model, STEPS[0][0], 1))
    with pytest.raises(ValueError, match=f"announced {announced!r}"):
        method.backward(lambda: accumulate(model, STEPS[0][0], 1))


def test_a_method_that_announces_nothing_is_an_error() -> None:
    @dataclasses.dataclass
    class Silent(Method):
        name: ClassVar[str] = "silent"
        paper: ClassVar[str] = ""

    model = Net().double()
    method = SharpnessAware(Silent(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NotImplementedError, match=r"Silent.*`replays`"):
        method.backward(lambda: accumulate(model, STEPS[0][0], 1))


# The base optimizer's state.

STATES = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum", "momentum_buffer"),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1), "momentum", "exp_avg"),
    "adamw-second": (lambda p: torch.optim.AdamW(p, lr=0.1), "second_moment", "exp_avg_sq"),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.1), "second_moment", "square_avg"),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.1), "second_moment", "sum"),
    "own-name": (lambda p: torch.optim.Adamax(p, lr=0.1), "exp_inf", "exp_inf"),
}


@pytest.mark.parametrize(("make", "key", "name"), STATES.values(), ids=STATES)
def test_optimizer_state(make: Any, key: str, name: str) -> None:
    """A copy: spending it leaves the optimizer's own."""
    found: list[Any] = []

    def run(step: Step) -> None:
        state = step.optimizer_state(key)
        found.append(state and long(state))
        if state:
            step.climb_along(state, 0.1)
            assert torch.equal(long([loop.optimizer.state[p][name] for p in loop.model.parameters()]), found[-1])

    loop = Loop(run, optimizer=make)
    for number in range(3):
        expected = [loop.optimizer.state[p][name].clone() for p in loop.model.parameters() if loop.optimizer.state[p]]
        loop.step(STEPS[number][0])
        before_first_step = number == 0 and key != "second_moment" and name != "sum"
        if found[-1] is None:
            assert number == 0
            assert not expected or before_first_step
        else:
            assert torch.equal(found[-1], long(expected))


@pytest.mark.parametrize(
    ("make", "key", "first"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "momentum", 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "second_moment", 1),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "step", 1),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "no such thing", 1),
    ],
)
def test_an_optimizer_without_such_a_state_is_refused(make: Any, key: str, first: int) -> None:
    loop = Loop(lambda step: step.optimizer_state(key) and None, optimizer=make)
    for _ in range(first):
        loop.step()
    with pytest.raises(ValueError, match=f"base optimizer .* state {key!r}"):
        loop.step()
