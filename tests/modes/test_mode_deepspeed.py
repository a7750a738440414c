"""DeepSpeed on two real gloo ranks: ZeRO 1, 2 and 3 through the Trainer, and what is refused (naming FSDP2)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Ranks
from models import Net, classification, collate
from reference import AdamW, Record, Spec, by_name, flat, linear_schedule, reference_run
from specs_of_modes import BASE, BETWEEN_OF_3, MAX_NORM, METHODS, SCOPED, Branching, joined, rank_batches, without_decay
from torch import nn

from hf_sharpness import TrainingArguments

Launcher = Callable[[str], Ranks]
STEPS = 3
ROUNDING = {"rtol": 0, "atol": 5e-7}
"""DeepSpeed computes in float32: about 7e-8 were seen."""
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
SAM, DECOUPLED = by_name("sam", "wsam-decoupled")
by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
by_stage = pytest.mark.parametrize("stage", [1, 2, 3])


def expected(
    spec: Spec, base: Any = None, lrs: list[float] | None = None, skipped: int = 0, model: Net | None = None
) -> list[Record]:
    steps = joined("global", [rank_batches(rank, 5, 2) for rank in (0, 1)])[skipped:STEPS]
    base = base or without_decay(BASE).reference()
    return reference_run(model or Net(), steps, spec.reference(), base, lrs or [BASE.lr] * len(steps), MAX_NORM)


def check(results: list[dict[str, Any]], records: list[Record]) -> None:
    for result in results:
        for weights, record in zip(result["weights"], records, strict=True):
            torch.testing.assert_close(weights.double(), record.weights, **ROUNDING)


@needs_deepspeed
@by_stage
@by_method
@pytest.mark.shows(
    mode="DeepSpeed, ZeRO-{stage}, 2 ranks = 1, Trainer", result="within rounding", brief="DeepSpeed, ZeRO-{stage}"
)
def test_zero_equals_one_process(stage: int, spec: Spec, ranks: Launcher) -> None:
    """SGD with momentum, two micro-batches, clipping by DeepSpeed; and what is logged."""
    records = expected(spec)
    results = ranks("cases_deepspeed")[f"zero-{stage}-{spec.name}"]
    check(results, records)
    for logged, record in zip(results[0]["log"], records, strict=True):
        handed = record.handed
        assert logged["sharpness"] == pytest.approx(handed.perturbed_loss - handed.loss, abs=1e-6)
        assert logged["perturbation_norm"] == pytest.approx(handed.perturbation_norm, rel=1e-6)
        assert logged["ascent_grad_norm"] == pytest.approx(handed.ascent_grad_norm, rel=1e-5)
        assert logged["grad_norm"] == pytest.approx(handed.gradient.norm().item(), rel=1e-5)
        if handed.extra is not None:
            assert logged["wsam_step_ratio"] == pytest.approx(record.step_ratio, rel=1e-5)


@needs_deepspeed
@by_stage
@pytest.mark.parametrize("spec", BETWEEN_OF_3, ids=str)
@pytest.mark.shows(mode="DeepSpeed, ZeRO-{stage}, step 2 of 3", result="within rounding")
def test_zero_in_some_steps(stage: int, spec: Spec, ranks: Launcher) -> None:
    """The steps before and after the sharpness-aware one are DeepSpeed's own."""
    results = ranks("cases_deepspeed")[f"zero-{stage}-{spec.name}"]
    check(results, expected(spec))
    assert ["sharpness" in logged for logged in results[0]["log"]] == [False, True, False]


@needs_deepspeed
@by_stage
@pytest.mark.parametrize("spec", by_name("asam-k2", "wsam-decoupled-k3"), ids=str)
@pytest.mark.shows(mode="DeepSpeed, ZeRO-{stage}, AdamW, schedule, sub-groups, overlap", result="within rounding")
def test_zero_with_adamw(stage: int, spec: Spec, ranks: Launcher) -> None:
    check_adamw(stage, spec, ranks)


@needs_deepspeed
@by_stage
@pytest.mark.shows(
    mode="DeepSpeed, ZeRO-{stage}, AdamW, term preconditioned", method="WSAM decoupled", result="within rounding"
)
def test_zero_with_adamw_and_its_preconditioner(stage: int, ranks: Launcher) -> None:
    check_adamw(stage, *by_name("wsam-preconditioned"), ranks)


def check_adamw(stage: int, spec: Spec, ranks: Launcher) -> None:
    model = Net(nn.PReLU)
    decay = torch.cat([torch.full((p.numel(),), 0.0 if "bias" in n else 0.1) for n, p in model.named_parameters()])
    records = expected(spec, AdamW(weight_decay=decay), linear_schedule(0.01, 0, STEPS), model=model)
    results = ranks("cases_deepspeed")[f"adam-{stage}-{spec.name}"]
    check(results, records)
    norms = [logged["grad_norm"] for logged in results[0]["log"]]
    assert norms == pytest.approx([record.handed.gradient.norm().item() for record in records], rel=1e-5)


@needs_deepspeed
@by_stage
@pytest.mark.parametrize("name", ["gamma_0", "rho_0"])
@pytest.mark.shows(
    mode="DeepSpeed, ZeRO-{stage}, {name} = stock Trainer, dropout and BatchNorm",
    method=["WSAM decoupled"],
    result="exact",
)
def test_zero_is_stock(stage: int, name: str, ranks: Launcher) -> None:
    launched = ranks("cases_deepspeed")
    for ours, stock in zip(launched[f"stock-{stage}-{name}"], launched[f"stock-{stage}-stock"], strict=True):
        for key in ("weights", "buffers"):
            assert all(torch.equal(a, b) for a, b in zip(ours[key], stock[key], strict=True))
        for logged, theirs in zip(ours["log"], stock["log"], strict=True):
            assert theirs.items() <= logged.items()


@needs_deepspeed
@by_stage
@pytest.mark.parametrize(
    ("half", "spec"), [("bf16", SAM), ("bf16", DECOUPLED), ("autocast", SAM), ("fp16", DECOUPLED)], ids=str
)
@pytest.mark.shows(mode="DeepSpeed, ZeRO-{stage}, {half} = float32", result="within rounding")
def test_zero_in_half_precision(stage: int, half: str, spec: Spec, ranks: Launcher) -> None:
    """The fp32 master weights move by rho (in bf16 with noise, for the model's weights to follow by stochastic
    rounding), and the update is float32's but for the rounding of the passes. In fp16 the first steps overflow and are
    skipped."""
    start = flat(Net()).double()
    for result in ranks("cases_deepspeed")[f"half-{stage}-{half}-{spec.name}"]:
        moved = [logged["perturbation_norm"] for logged in result["log"] if "perturbation_norm" in logged]
        assert moved == pytest.approx([spec.settings["rho"]] * len(moved), rel=0.05 if half == "bf16" else 1e-5)
        assert all(logged.get("ascent_grad_norm", 0) < 2 for logged in result["log"])
        if half == "fp16":
            assert 1 <= len(moved) < STEPS
            assert torch.equal(result["weights"][0], start.half().float())
            begin = start.half().double()
        else:
            assert len(moved) == STEPS
            begin = start
        way = expected(spec, skipped=STEPS - len(moved))[-1].weights - start
        assert (result["weights"][-1].double() - begin - way).norm() < 0.05 * way.norm()


@needs_deepspeed
@by_stage
def test_zero_rounds_small_perturbations_stochastically(stage: int, ranks: Launcher) -> None:
    """In bf16, with rho .001: the masters go to bf16 numbers, which are far apart, so that the model sees the move."""
    for result in ranks("cases_deepspeed")[f"small-{stage}"]:
        moved = [logged["perturbation_norm"] for logged in result["log"] if "perturbation_norm" in logged]
        assert min(moved) > 0.0015


@needs_deepspeed
@by_stage
@pytest.mark.parametrize(
    ("where", "method"), [("replay", "WSAM coupled"), ("backward", "WSAM decoupled"), ("probe", "XSAM")]
)
def test_zero_faults(stage: int, where: str, method: str, ranks: Launcher) -> None:
    """An exception in the middle of a pass leaves clean weights, in the model, in DeepSpeed and in what is saved."""
    for result in ranks("cases_deepspeed")[f"fault-{stage}-{where}"]:
        assert result.pop("accelerate") == "DeepSpeedEngineWrapper"
        assert result == dict.fromkeys(result, True)


@needs_deepspeed
@by_stage
@pytest.mark.parametrize("where", ["ascent", "replay"])
@pytest.mark.shows(
    mode="DeepSpeed, ZeRO-{stage}, gradient not finite on one rank", method="SAM", result="skipped as stock"
)
def test_zero_gradient_that_is_not_finite(stage: int, where: str, ranks: Launcher) -> None:
    launched = ranks("cases_deepspeed")
    results = launched[f"not_finite-{stage}-{where}"] + launched[f"not_finite-{stage}-stock"]
    for result in results:
        first, second, third = result["weights"]
        assert torch.equal(first, second)
        assert not torch.equal(second, third)
        assert result["weights"][-1].isfinite().all()
        assert result["log"][1]["grad_norm"] == float("inf")


@needs_deepspeed
@by_stage
@pytest.mark.parametrize("spec", by_name("wsam-decoupled"), ids=str)
@pytest.mark.shows(mode="DeepSpeed, ZeRO-{stage}, checkpoint and resume, evaluations between", result="exact")
def test_zero_resume(stage: int, spec: Spec, ranks: Launcher) -> None:
    for result in ranks("cases_deepspeed")[f"resume-{stage}-{spec.name}"]:
        assert torch.equal(result["saved"], result["through"][1])
        assert all(torch.equal(a, b) for a, b in zip(result["through"][2:], result["resumed"], strict=True))


@needs_deepspeed
@pytest.mark.parametrize("spec", [SAM, DECOUPLED], ids=str)
@pytest.mark.shows(mode="DeepSpeed, ZeRO-3, parameters without a gradient in some steps", result="within rounding")
def test_zero_unused_parameters(spec: Spec, ranks: Launcher) -> None:
    items = [item | {"branch": torch.tensor(i // 16 % 2)} for i, item in enumerate(classification(80, seed=5))]
    batches = [collate(items[start : start + 4]) for start in range(0, 16 * STEPS, 4)]
    steps = [batches[start : start + 4] for start in range(0, len(batches), 4)]
    base = without_decay(BASE).reference()
    records = reference_run(Branching(), steps, spec.reference(), base, [BASE.lr] * STEPS, MAX_NORM)
    check(ranks("cases_deepspeed")[f"unused-3-{spec.name}"], records)


@needs_deepspeed
def test_zero_3_does_not_save_in_the_middle(ranks: Launcher) -> None:
    for result in ranks("cases_deepspeed")["saving_within-3-save"]:
        assert "on_step_end" in result["error"]


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.shows(mode="DeepSpeed, ZeRO-{stage}, checkpoint in the middle of a replay", method="SAM", result="clean")
def test_zero_save_in_the_middle(stage: int, ranks: Launcher) -> None:
    """What is saved are the weights before the step, and training goes on as without."""
    launched = ranks("cases_deepspeed")
    saving, going_on = launched[f"saving_within-{stage}-save"], launched[f"saving_within-{stage}-go_on"]
    for result, other in zip(saving, going_on, strict=True):
        assert torch.equal(result["saved"], result["weights"][0])
        assert result["parts"]
        assert all(torch.equal(a, b) for a, b in zip(result["weights"], other["weights"], strict=True))


@needs_deepspeed
@pytest.mark.parametrize(("case", "said"), [("plain_loop", "hf_sharpness.Trainer"), ("refused_at_the_start", "stage")])
def test_refused_when_training_begins(case: str, said: str, ranks: Launcher) -> None:
    for text in ranks("cases_deepspeed")[case]:
        assert said in text
        assert "FSDP2" in text


@needs_deepspeed
@pytest.mark.parametrize("case", ["2-train", "3-train", "3-evaluate"])
def test_an_engine_that_cannot_train(case: str, ranks: Launcher) -> None:
    """A stock Trainer's ends with an AttributeError."""
    for text in ranks("cases_deepspeed")[f"used_before-{case}"]:
        assert "call train() first" in text
        assert "new Trainer" in text


UNSUPPORTED = {
    "no ZeRO": {},
    "stage 0": {"zero_optimization": {"stage": 0}},
    "offload_optimizer": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    "offload_param": {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
    "quantized gradients": {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
    "hpZ": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}},
    "MiCS": {"zero_optimization": {"stage": 3, "mics_shard_size": 4}},
    "ZeRO-1, bf16, float32 accumulation": {
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    },
    "bf16 master weights": {
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
    },
    "tensor parallel": {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2}},
}


@pytest.mark.parametrize("name", list(UNSUPPORTED))
@pytest.mark.parametrize("kind", ["dict", "file"])
@by_method
@pytest.mark.shows(mode="DeepSpeed: {name}", result="refused")
def test_config_is_refused(spec: Spec, kind: str, name: str, tmp_path: Path) -> None:
    """When the arguments are made."""
    config: Any = UNSUPPORTED[name]
    if kind == "file":
        config = str(tmp_path / "ds.json")
        Path(config).write_text(json.dumps(UNSUPPORTED[name]))
    with pytest.raises(ValueError, match="FSDP2") as error:
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=config, **spec.arguments())
    assert "DeepSpeed config" in str(error.value)


@pytest.mark.parametrize("spec", [s for s in SCOPED if not s.name.startswith("global")], ids=str)
@pytest.mark.parametrize("launcher", ["argument", "accelerate"])
@pytest.mark.shows(mode="DeepSpeed, scopes device and micro_batch", result="refused")
def test_smaller_scopes_are_refused(spec: Spec, launcher: str, tmp_path: Path, monkeypatch: Any) -> None:
    arguments: dict[str, Any] = {"deepspeed": {"zero_optimization": {"stage": 2}}} if launcher == "argument" else {}
    if launcher == "accelerate":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="sam_scope='global'"):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments, **spec.arguments())
