"""What the oldest versions do otherwise, for tests that hold there too."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import numpy
import torch


@functools.lru_cache(maxsize=1)
def sgd_takes_momentum() -> bool:
    """transformers 5.0 ignores `optim_args` with `optim="sgd"`; later versions do not."""
    import transformers

    arguments = transformers.TrainingArguments(
        tempfile.gettempdir(), use_cpu=True, optim="sgd", optim_args="momentum=0.9"
    )
    return "momentum" in transformers.Trainer.get_optimizer_cls_and_kwargs(arguments)[1]


def grey(processor: Any, image: Any) -> Any:
    """A grey PIL image for a saved processor; transformers 5.0 wants an axis for its channel."""
    try:
        processor(image, return_tensors="pt")
    except ValueError:
        return numpy.asarray(image)[..., None]
    return image


def options_for_momentum(arguments: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's own options with which `optim_args="momentum=..."` has its effect: none in most versions."""
    if "optim_args" not in arguments or sgd_takes_momentum():
        return {}
    momentum = float(arguments["optim_args"].removeprefix("momentum="))
    return {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": arguments["learning_rate"], "momentum": momentum})}
