"""A training_step of the user's own under DeepSpeed on two ranks: the method on all that it differentiates."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from launch import Ranks
from models import Batch, Net, classification, collate
from reference import reference_run
from specs_of_modes import BASE, BETWEEN_OF_3, MAX_NORM, joined, named, rank_batches, without_decay
from torch import Tensor, nn

Launcher = Callable[[str], Ranks]
MODULE = "cases_deepspeed_own_steps"
STEPS = 3
MEMORY = collate(classification(8, seed=7))
pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
by_stage = pytest.mark.parametrize("stage", [1, 2, 3])


def with_memory(model: nn.Module, micro_batches: Sequence[Batch]) -> list[Tensor]:
    remembered = model(**MEMORY)["loss"]
    return [(model(**batch)["loss"] + remembered) / len(micro_batches) for batch in micro_batches]


def check(results: list[list[Tensor]], name: str, accumulation: int, **losses: Any) -> None:
    steps = joined("global", [rank_batches(rank, 5, accumulation) for rank in (0, 1)])
    if accumulation == 1:  # `rank_batches` deals out as many items as the steps need
        steps = joined("global", [rank_batches(rank, 10, 1) for rank in (0, 1)])
    base = without_decay(BASE).reference()
    records = reference_run(Net(), steps[:STEPS], named(name).reference(), base, [BASE.lr] * STEPS, MAX_NORM, **losses)
    for result in results:
        for weights, record in zip(result, records, strict=True):
            torch.testing.assert_close(weights.double(), record.weights, rtol=0, atol=5e-7)


@by_stage
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["sam", "wsam-coupled", "wsam-decoupled", "xsam"])
def test_a_whole_step_of_its_own(stage: int, accumulation: int, name: str, ranks: Launcher) -> None:
    check(ranks(MODULE)[f"own_step-{stage}-own:{accumulation}:{name}"], name, accumulation)


@by_stage
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("form", ["twice", "before", "after", "inside"])
@pytest.mark.parametrize("name", ["sam", "wsam-coupled", "wsam-decoupled", "xsam"])
def test_a_step_of_several_backward_passes(
    stage: int, accumulation: int, form: str, name: str, ranks: Launcher
) -> None:
    """DeepSpeed alone would step after the first of them, or drop it."""
    results = ranks(MODULE)[f"own_step-{stage}-{form}:{accumulation}:{name}"]
    check(results, name, accumulation, losses=with_memory)


@by_stage
def test_also_in_the_steps_of_the_base_optimizers_own(stage: int, ranks: Launcher) -> None:
    name = BETWEEN_OF_3[0].name
    check(ranks(MODULE)[f"own_step-{stage}-twice:2:{name}"], name, 2, losses=with_memory)


@by_stage
def test_a_skipped_batch(stage: int, ranks: Launcher) -> None:
    for result in ranks(MODULE)[f"skipping-{stage}-1"]:
        first, second, third = result["weights"]
        assert not result["error"]
        assert torch.equal(first, second)
        assert not torch.equal(second, third)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_whose_last_micro_batch_is_skipped_is_refused(stage: int, ranks: Launcher) -> None:
    """There DeepSpeed reduces gradients in the last backward."""
    for result in ranks(MODULE)[f"skipping-{stage}-2"]:
        assert "self.accelerator.backward(loss) in every micro-batch" in result["error"]
        assert len(result["weights"]) == 1


@by_stage
def test_a_backward_without_accelerate_is_refused(stage: int, ranks: Launcher) -> None:
    """Its gradient would be lost, or be taken in the place of the step's."""
    for result in ranks(MODULE)[f"direct-{stage}-direct"]:
        assert "self.accelerator.backward(loss) in the place of loss.backward()" in result["error"]
        assert not result["weights"]  # no step has ended
