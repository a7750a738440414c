"""Averaged weights, read off a run that goes on as if nobody looked: SWA over its last quarter, and an EMA."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from transformers import TrainerCallback

SWA_SHARE = 0.25
"""SWA is the mean of the weights after each step of this last share of the training (arXiv 1803.05407)."""
EMA_SHARE = 0.1
"""The EMA forgets over this share of the training: decay 1 - 1 / (share * steps)."""


class Averaging(TrainerCallback):
    """Keeps averages of the weights (and buffers) beside the training.

    Args:
        variants: Some of `swa` and `ema`.

    Attributes:
        averages: Variant -> its `AveragedModel`, once there is one.
    """

    def __init__(self, variants: Sequence[str]) -> None:
        self.variants = tuple(variants)
        self.averages: dict[str, AveragedModel] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        for variant in self.variants:
            if variant == "swa" and state.global_step <= math.floor((1 - SWA_SHARE) * state.max_steps):
                continue
            if variant not in self.averages:
                self.averages[variant] = _average(variant, model, state.max_steps)
            self.averages[variant].update_parameters(model)


def _average(variant: str, model: nn.Module, steps: int) -> AveragedModel:
    decay = max(0.0, 1 - 1 / (EMA_SHARE * steps))
    average = get_swa_multi_avg_fn() if variant == "swa" else get_ema_multi_avg_fn(decay)
    return AveragedModel(model, multi_avg_fn=_of_numbers(average), use_buffers=True)


def _of_numbers(average: Callable[..., Any]) -> Callable[..., None]:
    """The same for tensors of floating point; others (positions, counters) are taken as they are.

    torch averages those too, and cannot on a CUDA device.
    """

    def averaged(means: Any, values: Any, number: Any) -> None:
        if means[0].is_floating_point():
            average(means, values, number)
        else:
            for mean, value in zip(means, values, strict=True):
                mean.copy_(value)

    return averaged


@contextlib.contextmanager
def averaged_weights(model: nn.Module, average: AveragedModel) -> Iterator[None]:
    """Inside, the model has the averaged weights and buffers; afterwards its own again, whatever happens."""
    own = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(average.module.state_dict())
        yield
    finally:
        with torch.no_grad():
            model.load_state_dict(own)
