"""Stochastic rounding: right on average, exact where it can be, and no random number taken from the training."""

from __future__ import annotations

import pytest
import torch

from hf_sharpness.engine import rounding
from hf_sharpness.engine.rounding import Noise, move_

N = 200_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moving_is_right_on_average(dtype: torch.dtype) -> None:
    """Steps far below the spacing of bf16 numbers (2^-7 from 1 to 2): every weight goes to one of its two neighbours,
    and their mean moves by the step; float32 weights begin at the bf16 number nearest to them."""
    values = torch.tensor([1.0, -1.0, 1.5, -3.0])
    step = torch.tensor([1e-3, 1e-3, -5e-4, -4e-3]).bfloat16().float()
    spacing = torch.tensor([2**-7, 2**-7, 2**-7, 2**-6])
    weights = [(values + (1e-3 if dtype == torch.float32 else 0)).to(dtype).repeat(N, 1)]
    move_(weights, weights, [step.to(dtype).repeat(N, 1)], [True], Noise(0))
    moved = weights[0].double() - values
    assert ((moved == 0) | (moved.abs() <= spacing)).all()
    assert all(len(column.unique()) == 2 for column in moved.T)
    error = moved.mean(0) - step.double()
    assert (error.abs() < 5 * spacing * (step.abs() / spacing / N).sqrt()).all()


def test_a_sum_on_the_grid_is_exact() -> None:
    weights = [torch.ones(5).bfloat16(), torch.randn(9).bfloat16()]
    before = weights[1].clone()
    move_(weights, weights, [torch.full((5,), 0.25).bfloat16(), torch.zeros(9).bfloat16()], [True, True], Noise(0), 2.0)
    assert torch.equal(weights[0], torch.full((5,), 1.5).bfloat16())
    assert torch.equal(weights[1], before)


@pytest.mark.parametrize("into", ["start", "step"])
def test_fine_weights_are_added_exactly(into: str) -> None:
    start, step = [torch.randn(7), torch.randn(3).double()], [torch.randn(7), torch.randn(3).double()]
    expected = [a + b for a, b in zip(start, step, strict=True)]
    target = start if into == "start" else step
    move_(target, start, step, [False, False], Noise(0))
    assert all(map(torch.equal, target, expected))


def test_a_step_that_is_overwritten_has_no_factor() -> None:
    step = [torch.ones(1)]
    with pytest.raises(ValueError, match=r"factor=2\.0"):
        move_(step, [torch.ones(1)], step, [False], Noise(0), factor=2.0)


def test_large_and_transposed_weights_move_too(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = rounding._in_parts
    monkeypatch.setattr(rounding, "_in_parts", lambda *tensors: parts(*tensors, elements=7))
    for weights in (torch.zeros(5, 4).bfloat16(), torch.zeros(4, 5).bfloat16().T):
        step = torch.arange(20.0).bfloat16().view(5, 4)
        move_([weights], [weights], [step], [True], Noise(0), factor=2.0)
        assert torch.equal(weights, 2 * step)


def test_what_is_not_finite_stays_so() -> None:
    """0x7fffffff is the NaN of GPUs; adding to its bits overflows."""
    exact = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, -0x800000], dtype=torch.int32).view(torch.float32)
    for seed in range(20):
        made = rounding.rounded_to_bfloat16(exact, Noise(seed))
        assert made[:3].isnan().all()
        assert torch.equal(made[3:], exact[3:])


def test_noise() -> None:
    """The same seed gives the same bits, another gives others; the default generator is left alone."""
    like = torch.zeros(1000, dtype=torch.int32)
    before = torch.get_rng_state()
    bits = [Noise(*seed).sixteen_bits(like) for seed in ((1, 2), (1, 2), (2, 1))]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(bits[0], bits[1])
    assert (bits[0] == bits[2]).sum() < 5
    one = Noise(1)
    assert not torch.equal(one.sixteen_bits(like), one.sixteen_bits(like))
