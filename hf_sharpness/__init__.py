"""Sharpness-aware fine-tuning (SAM, ASAM, WSAM, XSAM) with the Hugging Face Trainer, Accelerate and plain PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "SharpnessAware": "loop",
    "SharpnessArguments": "arguments",
    "TrainingArguments": "arguments",
    "Seq2SeqTrainingArguments": "arguments",
    "SharpnessTrainerMixin": "trainer",
    "Trainer": "trainer",
    "Seq2SeqTrainer": "trainer",
    "MeasureSharpness": "measure.callback",
}
_METHODS = "loop.classes"  # has a class of every method, and in `__all__` their names

if TYPE_CHECKING:
    from .arguments import Seq2SeqTrainingArguments as Seq2SeqTrainingArguments
    from .arguments import SharpnessArguments as SharpnessArguments
    from .arguments import TrainingArguments as TrainingArguments
    from .loop import SharpnessAware as SharpnessAware
    from .loop.classes import *  # noqa: F403
    from .measure.callback import MeasureSharpness as MeasureSharpness
    from .trainer import Seq2SeqTrainer as Seq2SeqTrainer
    from .trainer import SharpnessTrainerMixin as SharpnessTrainerMixin
    from .trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    """Import on first use: a plain PyTorch loop never loads transformers."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name == "__all__" or name[:1].isupper():
        methods = importlib.import_module(f".{_METHODS}", __name__)
        if name == "__all__":
            return ["__version__", *methods.__all__, *_HOMES]
        if name in methods.__all__:
            return getattr(methods, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
