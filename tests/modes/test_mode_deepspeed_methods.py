"""Methods of one's own under DeepSpeed on two gloo ranks: exact within float32, their tensors resumed bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import pytest
import torch
from cases import EXAMPLES, Example
from launch import Ranks
from models import Net
from reference import SGD, flat, reference_run
from reference.methods import Handed
from reference.run import Problem
from specs_of_modes import BASE, MAX_NORM, joined, rank_batches, without_decay
from torch import Tensor, nn

Launcher = Callable[[str], Ranks]
STEPS = 3
pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
by_stage = pytest.mark.parametrize("stage", [1, 2, 3])


def check(results: list[list[Tensor]], method: Any, base: SGD) -> None:
    steps = joined("global", [rank_batches(rank, 5, 2) for rank in (0, 1)])[:STEPS]
    records = reference_run(Net(nn.PReLU), steps, method, base, [BASE.lr] * STEPS, MAX_NORM)
    for result in results:
        for weights, record in zip(result, records, strict=True):
            torch.testing.assert_close(weights.double(), record.weights, rtol=0, atol=1e-6)


@by_stage
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_example_methods(stage: int, example: Example, ranks: Launcher) -> None:
    results = ranks("cases_deepspeed_methods")[f"example-{stage}-{example}"]
    check(results, example.expected([BASE.lr] * STEPS), without_decay(BASE).reference())


class MomentumAscentOnOneVector:
    def __init__(self, base: SGD):
        self.base = base

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        m = self.base.velocity
        loss, g = problem.gradient(w if m is None or not m.any() else w - 0.2 * m / m.norm())
        return Handed(g, None, loss)


@by_stage
def test_the_base_optimizers_state(stage: int, ranks: Launcher) -> None:
    base = without_decay(BASE).reference()
    check(ranks("cases_deepspeed_methods")[f"momentum-{stage}-momentumascent"], MomentumAscentOnOneVector(base), base)


@by_stage
def test_random_directions_have_one_number_for_each_weight(stage: int, ranks: Launcher) -> None:
    """None for what pads the parts; and other numbers on the other rank."""
    first, second = ranks("cases_deepspeed_methods")[f"drawing-{stage}-drawing"]
    assert first["elements"] + second["elements"] == len(flat(Net(nn.PReLU)))
    assert first["squares"] != pytest.approx(second["squares"])
    total = first["squares"] + second["squares"]
    assert first["direction_dot"] == pytest.approx(total, rel=1e-5)
    assert first["direction_norm"] == pytest.approx(total**0.5, rel=1e-5)


@by_stage
@pytest.mark.parametrize("name", ["friendly_sam", "looksam"])
def test_resuming_is_bit_for_bit(stage: int, name: str, ranks: Launcher) -> None:
    for result in ranks("cases_deepspeed_methods")[f"resumed-{stage}-{name}"]:
        assert all(torch.equal(a, b) for a, b in zip(result["through"][2:], result["resumed"], strict=True))
        assert result["files"] == ["sharpness_state_0.pt", "sharpness_state_1.pt"]
