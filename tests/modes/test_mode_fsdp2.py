"""FSDP2 on two real gloo ranks: by hand (`fully_shard`), and sharded by transformers at load time, in the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from launch import Ranks
from models import Net
from reference import Spec, by_name, flat, reference_run
from specs_of_modes import (
    ADAM,
    BASE,
    BETWEEN,
    MAX_NORM,
    METHODS,
    PRECONDITIONED,
    SCOPED,
    assert_third_step_skipped,
    joined,
    rank_batches,
)
from torch import nn

Launcher = Callable[[str], Ranks]
by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
ROUNDING = {"rtol": 0, "atol": 1e-9}


def expected(spec: Spec) -> list[torch.Tensor]:
    steps = joined("global", [rank_batches(rank, 5, 2) for rank in (0, 1)])
    records = reference_run(Net(nn.PReLU), steps, spec.reference(), BASE.reference(), [BASE.lr] * 5, MAX_NORM)
    return [record.weights for record in records]


@pytest.mark.parametrize(
    ("case", "spec"), [(case, spec) for case in ("fsdp2", "fsdp2_gathered") for spec in METHODS], ids=str
)
@pytest.mark.shows(mode="FSDP2, 2 ranks = 1, plain loop", result="exact")
def test_fsdp2_equals_one_process(case: str, spec: Spec, ranks: Launcher) -> None:
    """Also where layers stay gathered after the forward: what was gathered before a perturbation is not used after."""
    for results in ranks("cases_fsdp2")[f"{case}-{spec}"]:
        for weights, reference in zip(results, expected(spec), strict=True):
            torch.testing.assert_close(weights, reference, **ROUNDING)


@pytest.mark.parametrize("spec", BETWEEN, ids=str)
@pytest.mark.shows(mode="FSDP2, steps 2 and 3 of 5, plain loop", result="exact")
def test_fsdp2_in_some_steps(spec: Spec, ranks: Launcher) -> None:
    for results in ranks("cases_fsdp2")[f"fsdp2-{spec}"]:
        for weights, reference in zip(results, expected(spec), strict=True):
            torch.testing.assert_close(weights, reference, **ROUNDING)


@pytest.mark.parametrize("spec", PRECONDITIONED[:1], ids=str)
@pytest.mark.shows(mode="FSDP2, 2 ranks = 1, AdamW, term preconditioned", method="WSAM decoupled", result="exact")
def test_fsdp2_around_adamw_equals_one_process(spec: Spec, ranks: Launcher) -> None:
    steps = joined("global", [rank_batches(rank, 5, 2) for rank in (0, 1)])
    lrs = [ADAM.lr] * 5
    records = reference_run(Net(nn.PReLU), steps, spec.reference(), ADAM.reference(), lrs, MAX_NORM)
    for results in ranks("cases_fsdp2")[f"adam-{spec}"]:
        for weights, record in zip(results, records, strict=True):
            torch.testing.assert_close(weights, record.weights, **ROUNDING)


@pytest.mark.usually("(wsam-decoupled|xsam)-fsdp2|xsam-hsdp")
@pytest.mark.parametrize("wrapper", ["fsdp2", "hsdp"])
@by_method
@pytest.mark.shows(mode="{wrapper} (DistributedConfig) = DDP, Trainer", brief="FSDP2 (`{wrapper}`)", result="exact")
def test_trainer_sharded_at_load_equals_ddp(wrapper: str, spec: Spec, ranks: Launcher) -> None:
    """A tiny Llama in float64, weights and logged series."""
    launched = ranks("cases_trainer")
    for ours, ddp in zip(launched[f"llama_by-{wrapper}-{spec}"], launched[f"llama_by-ddp-{spec}"], strict=True):
        assert_equal_runs(ours, ddp)


def assert_equal_runs(ours: dict[str, Any], ddp: dict[str, Any]) -> None:
    for sharded, replicated in zip(ours["weights"], ddp["weights"], strict=True):
        torch.testing.assert_close(sharded, replicated, **ROUNDING)
    for a, b in zip(ours["log"], ddp["log"], strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-6) for key in a)


@by_method
@pytest.mark.shows(mode="FSDP2 (accelerate launch) = DDP, Trainer", brief="FSDP2 (`accelerate`)", result="exact")
def test_accelerates_fsdp2_equals_ddp(spec: Spec, ranks: Launcher) -> None:
    """Accelerate's own code on CPUs, which it does not offer: see cases_accelerate.py."""
    launched, others = ranks("cases_accelerate"), ranks("cases_trainer")
    for ours, ddp in zip(launched[f"accelerate_fsdp2-{spec}"], others[f"llama_by-ddp-{spec}"], strict=True):
        assert_equal_runs(ours, ddp)


@by_method
@pytest.mark.shows(mode="FSDP2 (accelerate launch): sharded checkpoint and resume", result="exact")
def test_accelerates_fsdp2_resumes(spec: Spec, ranks: Launcher) -> None:
    for run in ranks("cases_accelerate")[f"accelerate_fsdp2-{spec}"]:
        assert torch.equal(torch.stack(run["resumed"]), torch.stack(run["weights"][2:]))


@pytest.mark.parametrize("spec", by_name("sam", "wsam-decoupled"), ids=str)
@pytest.mark.shows(mode="FSDP2 (accelerate launch): full checkpoint", result="exact")
def test_accelerates_fsdp2_full_checkpoint(spec: Spec, ranks: Launcher) -> None:
    for run in ranks("cases_accelerate")[f"full_checkpoint-{spec}"]:
        assert torch.equal(run["saved"], run["weights"][1])


@by_method
@pytest.mark.shows(mode="FSDP2 gathering in bf16 = float32", brief="FSDP2 with bf16", result="within rounding")
def test_fsdp2_mixed_precision(spec: Spec, ranks: Launcher) -> None:
    reference = expected(spec)
    way = (reference[-1] - flat(Net(nn.PReLU))).norm()
    for results in ranks("cases_fsdp2")[f"fsdp2_bf16-{spec}"]:
        assert (results[-1] - reference[-1]).norm() < 0.1 * way


@pytest.mark.parametrize("where", ["ascent", "replay", "both"])
@by_method
@pytest.mark.shows(mode="FSDP2, fp16 overflow on one rank only, GradScaler", result="skipped as stock")
def test_fsdp2_overflow_on_one_rank(spec: Spec, where: str, ranks: Launcher) -> None:
    first, second = ranks("cases_fsdp2")[f"fsdp2_overflow-{where}-{spec}"]
    assert_third_step_skipped(first, second)


@by_method
@pytest.mark.shows(mode="FSDP2, exception in any forward", result="clean")
def test_fsdp2_faults(spec: Spec, ranks: Launcher) -> None:
    """In every micro-batch of both passes and the check. The same step then goes through, as if none had failed."""
    for clean in ranks("cases_fsdp2")[f"fsdp2_faults-{spec}"]:
        assert clean == [True] * 7


EXTRA = {"sam": 1, "wsam-coupled": 2, "wsam-decoupled": 2, "xsam": 2}
"""In shards: the saved weights, and what the method keeps (coupled WSAM: the gradient it adds to, in p.grad)."""


@by_method
@pytest.mark.shows(mode="FSDP2: buffers stay sharded", result="exact")
def test_fsdp2_buffers_stay_sharded(spec: Spec, ranks: Launcher) -> None:
    """All tensors alive in the middle of a replay, over those in the middle of the first pass: counted in shards; one
    gathered copy would be two more."""
    for extra in ranks("cases_fsdp2")[f"fsdp2_memory-{spec}"]:
        assert extra == pytest.approx(EXTRA[spec.name], abs=0.2)


@by_method
@pytest.mark.shows(
    mode="FSDP2: torch.distributed.checkpoint and resume", brief="FSDP2: checkpoint, resume", result="exact"
)
def test_fsdp2_resume(spec: Spec, ranks: Launcher) -> None:
    for result in ranks("cases_fsdp2")[f"fsdp2_resume-{spec}"]:
        assert torch.equal(result["through"], result["resumed"])


@by_method
@pytest.mark.shows(mode="FSDP2 (DistributedConfig): checkpoint with save_only_model", result="exact")
def test_fsdp2_checkpoint_of_the_weights(spec: Spec, ranks: Launcher) -> None:
    """transformers offers no other for a model sharded at load time; it holds the weights after that step."""
    for result in ranks("cases_trainer")[f"llama_by-fsdp2-{spec}"]:
        assert torch.equal(result["saved"], result["weights"][1])


@pytest.mark.parametrize("spec", [s for s in SCOPED if not s.name.startswith("global")], ids=str)
@pytest.mark.shows(
    mode="FSDP2, scopes device and micro_batch", brief="FSDP2, scopes device and micro_batch", result="refused"
)
def test_fsdp2_refuses_smaller_scopes(spec: Spec, ranks: Launcher) -> None:
    for text in ranks("cases_fsdp2")[f"fsdp2_refused-{spec}"]:
        assert "FSDP2" in text
        assert "scope='global'" in text


@pytest.mark.parametrize(("what", "said"), [("scope", "scope='global'"), ("bf16", "not refused")])
def test_fsdp2_after_an_evaluation(what: str, said: str, ranks: Launcher) -> None:
    """FSDP2 leaves its root gathered after an evaluation: the sharded weights are judged all the same, not their
    gathered copies (which are bf16 where FSDP2 gathers in bf16)."""
    for text in ranks("cases_fsdp2")[f"fsdp2_evaluated-{what}"]:
        assert said in text


@pytest.mark.parametrize("scope", ["device", "micro_batch"])
def test_fsdp2_trainer_refuses_smaller_scopes(scope: str, ranks: Launcher) -> None:
    for text in ranks("cases_trainer")[f"fsdp2_trainer_refused-{scope}"]:
        assert repr(scope) in text
        assert "scope='global'" in text


@by_method
@pytest.mark.shows(mode="FSDP1", brief="FSDP1", result="refused")
def test_fsdp1_is_refused(spec: Spec, ranks: Launcher) -> None:
    for text in ranks("cases_fsdp2")[f"fsdp1_refused-{spec}"]:
        assert "FSDP1" in text
        assert "FSDP2" in text


@by_method
@pytest.mark.shows(mode="Tensor parallel (DistributedConfig), plain loop", brief="Tensor parallel", result="exact")
def test_tensor_parallel_equals_one_process(spec: Spec, ranks: Launcher) -> None:
    launched = ranks("cases_trainer")
    for two, one in zip(launched[f"tensor_parallel-2-{spec}"], launched[f"tensor_parallel-1-{spec}"], strict=True):
        for a, b in zip(two, one, strict=True):
            torch.testing.assert_close(a, b, **ROUNDING)
