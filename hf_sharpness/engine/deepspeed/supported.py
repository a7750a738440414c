"""Which kind of weights a DeepSpeed engine has, and what it cannot train with."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from .config import REMEDY, check_config
from .weights import Zero3Weights, Zero12Weights, ZeroWeights

OLDEST = (0, 19)
"""Older versions have not been tried."""


USED_BEFORE = (
    "this Trainer's DeepSpeed engine was made by an earlier evaluate(), predict() or train(), and cannot train any "
    "more (nor could a stock Trainer's): call train() first and only once, or make a new Trainer"
)


def weights_of(engine: Any) -> ZeroWeights:
    """The weights of a ``DeepSpeedEngine``.

    Raises:
        ValueError: the update would not be exact, or the engine cannot train; the message says what to do instead.
    """
    check_config(engine.config)
    _check_version()
    kinds = _kinds()
    zero = engine.optimizer
    if type(zero).__name__ == "DeepSpeedZeRoOffload":
        raise ValueError(USED_BEFORE)
    if type(zero) not in kinds:
        raise ValueError(f"sharpness-aware steps do not run under DeepSpeed's {type(zero).__name__}: {REMEDY}")
    if engine.has_moe_layers:
        raise ValueError(f"sharpness-aware steps do not run with DeepSpeed's mixture of experts: {REMEDY}")
    if "muon" in type(zero.optimizer).__name__.lower():
        raise ValueError(
            "sharpness-aware steps do not run with DeepSpeed's Muon, which turns each gradient into a step as it is "
            f"reduced: use another optimizer, or {REMEDY}"
        )
    if zero.torch_autocast_gradscaler is not None:
        raise ValueError(
            "sharpness-aware steps do not run with torch_autocast in float16 under DeepSpeed: use bfloat16 "
            f"(torch_autocast: dtype: bfloat16), or {REMEDY}"
        )
    return kinds[type(zero)](engine)


def _check_version() -> None:
    version = metadata.version("deepspeed")
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise ValueError(
            f"sharpness-aware steps do not run under DeepSpeed {version}, which has not been tried: install "
            f"{'.'.join(map(str, OLDEST))} or newer, or {REMEDY}"
        )


def _kinds() -> dict[type, type[ZeroWeights]]:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    return {DeepSpeedZeroOptimizer: Zero12Weights, DeepSpeedZeroOptimizer_Stage3: Zero3Weights}
