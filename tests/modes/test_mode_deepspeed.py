"""DeepSpeed is refused when the arguments are made, naming FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reference import Spec
from specs_of_modes import METHODS

from hf_sharpness import TrainingArguments

CONFIGS = {
    "a dict": {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"},
    "a file": "ds_config.json",
    "zero stage 1": {"zero_optimization": {"stage": 1}},
    "zero stage 3": {"zero_optimization": {"stage": 3}},
}
by_method = pytest.mark.parametrize("spec", METHODS, ids=str)


@pytest.mark.parametrize("config", list(CONFIGS))
@by_method
@pytest.mark.shows(mode="DeepSpeed, ZeRO 1, 2 or 3, by `deepspeed=`", result="refused")
def test_deepspeed_argument_is_refused(spec: Spec, config: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FSDP2") as error:
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=CONFIGS[config], **spec.arguments())
    assert "DeepSpeed" in str(error.value)
    assert f"optim={spec.method!r}" in str(error.value)


@pytest.mark.parametrize("value", ["true", "1", "yes", "True"])
@by_method
@pytest.mark.shows(mode="DeepSpeed by `accelerate launch`", result="refused")
def test_deepspeed_from_accelerate_is_refused(spec: Spec, value: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", value)
    with pytest.raises(ValueError, match="FSDP2"):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **spec.arguments())


def test_stock_optimizers_are_none_of_our_business(tmp_path: Path) -> None:
    """The refusal is for sharpness-aware steps only: without them transformers decides (here: it is not installed)."""
    with pytest.raises(ImportError, match=r"(?i)deepspeed"):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=CONFIGS["a dict"], optim="adamw_torch")
