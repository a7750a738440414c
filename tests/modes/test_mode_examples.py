"""The methods of examples/methods/ in the Trainer on two gloo ranks: the ranks are one batch, and resume exactly."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import pytest
import torch
from cases import EXAMPLES, Example
from launch import Ranks
from models import Net
from reference import linear_schedule, reference_run
from specs_of_modes import BASE, MAX_NORM, joined, rank_batches, without_decay

Launcher = Callable[[str], Ranks]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_ddp_equals_one_process(example: Example, ranks: Launcher) -> None:
    rates = linear_schedule(BASE.lr, 2, 5)
    steps = joined("global", [rank_batches(rank, 5, 2) for rank in (0, 1)])
    base = without_decay(BASE).reference()
    records = reference_run(Net(), steps, example.expected(rates), base, rates, MAX_NORM)
    first, second = ranks("cases_examples")[f"trained-{example}"]
    for ours, others, record in zip(first, second, records, strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours, record.weights, rtol=0, atol=1e-9)


@pytest.mark.usually("(gsam|looksam)-fsdp2")
@pytest.mark.parametrize("wrapper", ["fsdp2", "hsdp"])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_sharded_at_load_equals_ddp(wrapper: str, example: Example, ranks: Launcher) -> None:
    """A tiny Llama in float64."""
    launched = ranks("cases_examples")
    for ours, ddp in zip(launched[f"llama_by-{wrapper}-{example}"], launched[f"llama_by-ddp-{example}"], strict=True):
        for sharded, replicated in zip(ours, ddp, strict=True):
            torch.testing.assert_close(sharded, replicated, rtol=0, atol=1e-9)


def test_all_that_step_offers_under_tensor_parallelism(ranks: Launcher) -> None:
    """As on one process, random directions included."""
    launched = ranks("cases_examples")
    for ours, alone in zip(launched["tensor_parallel-2"], launched["tensor_parallel-1"], strict=True):
        for sharded, one in zip(ours, alone, strict=True):
            torch.testing.assert_close(sharded, one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["friendly_sam", "looksam"])
def test_ddp_resumes_bit_for_bit(name: str, ranks: Launcher) -> None:
    for result in ranks("cases_examples")[f"resumed-{name}"]:
        assert all(torch.equal(a, b) for a, b in zip(result["whole"], result["rest"], strict=True))
        assert result["files"] == ["sharpness_state_0.pt", "sharpness_state_1.pt"]


def test_one_process_starts_anew_from_a_checkpoint_of_two(ranks: Launcher) -> None:
    from hf_sharpness.engine.kept import Kept
    from hf_sharpness.engine.weights import Weights
    from hf_sharpness.training import kept

    checkpoint = ranks("cases_examples")["resumed-friendly_sam"][0]["checkpoint"]
    model = Net().double()
    store = Kept("friendlysam", ("average",), Weights(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    with pytest.warns(UserWarning, match=r"starts anew.*it was saved on 2 ranks, and this is 1 rank"):
        kept.load(store, checkpoint, 0)
    assert not store.has("average")


def test_a_file_that_one_rank_lacks_is_taken_over_by_none(ranks: Launcher) -> None:
    first, second = ranks("cases_examples")["lost-friendly_sam"]
    assert "another rank could not take over its own" in first["said"][0]
    assert "there is none" in second["said"][0]
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
