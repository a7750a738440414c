"""What a DeepSpeed config may say with sharpness-aware steps; reads no more than the config."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

REMEDY = "shard the model with FSDP2 instead (fsdp_version: 2 in the accelerate config)"


def is_engine(model: Any) -> bool:
    """Whether a model is a ``DeepSpeedEngine`` (without importing DeepSpeed)."""
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)


def read_config(config: Any) -> dict[str, Any] | None:
    """What ``TrainingArguments.deepspeed`` says if that is a dict or a file, else None: ``weights_of`` checks again."""
    if isinstance(config, dict):
        return config
    if isinstance(config, (str, os.PathLike)) and os.path.isfile(config):
        return json.loads(Path(config).read_text())
    return None


def check_config(config: dict[str, Any]) -> None:
    """Raise a ValueError for a DeepSpeed config under which the update would not be exact; names the remedy."""
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise ValueError(
            f"zero_optimization.stage={stage!r} of the DeepSpeed config is not supported with sharpness-aware steps: "
            "use stage 1, 2 or 3; or, without DeepSpeed, DistributedDataParallel or FSDP2"
        )
    for name, because in REFUSED.items():
        value: Any = config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        number = isinstance(value, int) and not isinstance(value, bool)
        if value > 1 if number else value not in (None, False, "none", "auto"):
            raise ValueError(
                f"{name}={value!r} of the DeepSpeed config is not supported with sharpness-aware steps, as {because}: "
                f"remove it, or {REMEDY}"
            )
    accumulated = (config.get("data_types") or {}).get("grad_accum_dtype")
    half = (config.get("bf16") or {}).get("enabled")
    if stage == 1 and half and accumulated in ("fp32", "float32"):
        raise ValueError(
            "data_types.grad_accum_dtype='fp32' of the DeepSpeed config is not supported with sharpness-aware steps in "
            "ZeRO-1 with bf16, for which DeepSpeed has an optimizer that holds all gradients whole: use stage 2, or "
            f"{REMEDY}"
        )


_OFFLOADED = "DeepSpeed then moves weights and gradients to another memory within a pass"
_ROUNDED = "DeepSpeed then rounds weights or gradients on their way between ranks"
_SECOND_COPY = "DeepSpeed then holds weights a second time, where a perturbation does not arrive"
_LOW_MASTERS = "the master weights then are too coarse for a perturbation"
_GROUPS = "different weights are then averaged over different ranks"

REFUSED = {
    "zero_optimization.offload_optimizer.device": _OFFLOADED,
    "zero_optimization.offload_param.device": _OFFLOADED,
    "zero_optimization.zenflow": _OFFLOADED,
    "zero_optimization.zero_quantized_weights": _ROUNDED,
    "zero_optimization.zero_quantized_nontrainable_weights": _ROUNDED,
    "zero_optimization.zero_quantized_gradients": _ROUNDED,
    "zero_optimization.zero_hpz_partition_size": _SECOND_COPY,
    "zero_optimization.mics_shard_size": _SECOND_COPY,
    "bf16.bf16_master_weights_and_grads": _LOW_MASTERS,
    "fp16.fp16_master_weights_and_grads": _LOW_MASTERS,
    "tensor_parallel.autotp_size": _GROUPS,
    "sequence_parallel_size": _GROUPS,
    "expert_parallel.enabled": _GROUPS,
    "compile.deepcompile": "the compiled graph then holds its own copies of the weights",
}
"""Entries of a DeepSpeed config that no sharpness-aware step is exact with, and why."""
