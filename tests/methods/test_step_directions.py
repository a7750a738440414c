"""What a method of one's own does with vectors: lengths, climbing along one, and random directions; by hand."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from method_in_loop import STEPS, Loop, closure, long, run_backward, seen
from models import Net, accumulate
from reference import flat
from torch import Tensor, nn

from hf_sharpness.methods import Step

pytestmark = pytest.mark.filterwarnings("ignore:method.backward was called again")  # nothing is trained here


def test_norm_and_dot_are_those_of_one_long_vector() -> None:
    def run(step: Step) -> None:
        g, d = step.gradient(), step.random_direction()
        torch.testing.assert_close(step.norm(d), long(d).norm())
        torch.testing.assert_close(step.dot(g, d), long(g) @ long(d))
        torch.testing.assert_close(step.dot(g[:2], d), long(g[:2]) @ long(d[:2]))

    seen(run)


def test_dot_of_parameters_on_one_memory_is_that_of_what_moves() -> None:
    """Two parameters on the same numbers: the entries of both add up, as in the norm."""
    model = Net().double()
    model.twin = nn.Parameter(model.last.weight.detach())

    def run(step: Step) -> None:
        g = step.gradient()
        torch.testing.assert_close(step.dot(g, g), step.norm(g) ** 2)
        d = step.random_direction()
        torch.testing.assert_close(
            step.norm(d), math.sqrt(len(flat(Net()))) * torch.ones((), dtype=torch.float64), rtol=0.3, atol=0
        )

    loop = Loop(run, model=model)
    loop.method.backward(lambda: (accumulate(model, STEPS[0][0], 1), (model.twin * 2).sum().backward())[0])


@pytest.mark.parametrize("length", [0.3, -0.2, torch.tensor(0.3, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_climb_along_moves_the_weights_by_that_length(length: Any, adaptive: bool) -> None:
    def run(step: Step) -> None:
        d = step.random_direction()
        scale = w.abs() if adaptive else torch.ones_like(w)
        expected = float(length) * scale**2 * long(d) / (scale * long(d)).norm()
        g = long(step.gradient())
        moved = step.climb_along(d, length, adaptive)
        torch.testing.assert_close(flat(loop.model) - w, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(long(moved), expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(long(step.gradient()), g)
        step.climb_along(step.pad(moved[:1]), length)
        step.replay()

    loop = Loop(run, 1)
    w = flat(loop.model)
    loop.step(take=False)
    assert torch.equal(flat(loop.model), w)
    g = long([p.grad for p in loop.model.parameters()])
    assert loop.method.metrics["ascent_grad_norm"] > 0
    assert loop.method.metrics["perturbation_norm"] > 0.1
    assert g.isfinite().all()


def test_a_zero_direction_moves_nothing() -> None:
    def run(step: Step) -> None:
        step.climb_along([torch.zeros_like(t) for t in step.gradient()], 0.3)
        assert torch.equal(flat(loop.model), w)

    loop = Loop(run)
    w = flat(loop.model)
    loop.step()


@pytest.mark.parametrize("taken", [False, True])
def test_a_direction_that_is_not_finite_moves_nothing_and_a_scaler_skips(taken: bool) -> None:
    """Whether p.grad was taken away before or not: something that is not finite is there for the scaler to find."""

    def run(step: Step) -> None:
        g = step.take_gradient() if taken else [t.clone() for t in step.gradient()]
        bad = len(loop.method.metrics) > 0
        g[0][0] = float("nan") if bad else g[0][0]
        if bad and not taken:
            step.gradient()[0][0] = float("inf")
        step.climb_along(g, 0.1)
        step.replay()

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop = Loop(run, 1, scaler=scaler)
    weights = [flat(loop.model)]
    for _ in range(2):
        loop.method.backward(lambda: closure(loop.model, scaler))
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        weights.append(flat(loop.model))
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert scaler.get_scale() == 4.0


def test_bfloat16_weights_move_along_a_vector_as_a_whole() -> None:
    """By stochastic rounding, which keeps a displacement far below the spacing of the numbers on average."""

    def run(step: Step) -> None:
        ones = [torch.ones(t.shape) for t in step.gradient()]
        step.climb_along(ones, length)
        moved.append(float((loop.model.weight.detach().float() - 1.0).mean()))

    moved: list[float] = []
    model = nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    length = 512 * 2.0**-12  # the spacing at 1 is 2^-7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = Loop(run, model=model)
    loop.method.backward(lambda: run_backward(model(torch.ones(1, 512, dtype=torch.bfloat16)).float().mean()))
    assert moved[0] == pytest.approx(2.0**-12, rel=0.2)
    assert torch.equal(model.weight.detach(), torch.ones_like(model.weight))


# Random directions.


def test_random_directions_are_normal_and_leave_the_trainings_numbers_alone() -> None:
    def run(step: Step) -> None:
        before = torch.get_rng_state()
        drawn.extend([long(step.random_direction()), long(step.random_direction())])
        assert torch.equal(torch.get_rng_state(), before)

    drawn: list[Tensor] = []
    loop = Loop(run, model=nn.Linear(100, 100))
    for _ in range(2):
        loop.method.backward(lambda: run_backward(loop.model(torch.ones(1, 100)).mean()))
    assert all(torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.05 for i, a in enumerate(drawn) for b in drawn[:i])
    for vector in drawn:
        assert vector.mean().abs() < 0.05
        assert vector.std() == pytest.approx(1.0, abs=0.05)
        assert vector.abs().max() > 3


def test_random_directions_repeat_with_the_seed_and_differ_without() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return seen(lambda step: long(step.random_direction()))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_micro_batches_that_run_alone_draw_directions_of_their_own() -> None:
    drawn: list[Tensor] = []
    loop = Loop(lambda step: drawn.append(long(step.random_direction())), scope="micro_batch")
    loop.method.backward([lambda: accumulate(loop.model, STEPS[0][0], 2)] * 2)
    assert not torch.equal(*drawn)


def test_an_interrupted_step_draws_the_same_again() -> None:
    def run(step: Step) -> None:
        drawn.append(long(step.random_direction()))
        if len(drawn) == 1:
            raise KeyboardInterrupt

    drawn: list[Tensor] = []
    loop = Loop(run)
    with pytest.raises(KeyboardInterrupt):
        loop.step()
    loop.optimizer.zero_grad()
    loop.step()
    assert torch.equal(*drawn)


def test_overlapping_parameters_draw_one_number_for_each_weight() -> None:
    """Entries of parameters on one memory add up: their sum is what is normal."""
    model = nn.Linear(200, 200, bias=False)
    model.twin = nn.Parameter(model.weight.detach())

    def run(step: Step) -> None:
        start = model.weight.detach().clone()
        direction = step.random_direction()
        size = step.norm(direction)
        step.climb_along(direction, size)
        moved.append(model.weight.detach() - start)

    moved: list[Tensor] = []
    loop = Loop(run, model=model)
    x = torch.ones(1, 200)
    loop.method.backward(lambda: run_backward((model(x) + x @ model.twin.t()).mean()))
    assert moved[0].std() == pytest.approx(1.0, abs=0.03)
