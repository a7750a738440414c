"""What a training run costs, and whether it diverged: passes, processor time and peak memory, seen from a callback."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Observer(TrainerCallback):
    """Counts and times the steps of one training.

    Attributes:
        micro_batches: Micro-batches seen, each once whatever number of passes it took.
        with_gradient: Forward passes of the model in training that a backward pass follows; one over some examples of a
            micro-batch counts in part.
        forward_only: Those without.
        step_seconds: Of each optimizer step, without the loading of its data: processor time of the process, or time
            on the clock with the device synchronised where there is an accelerator.
        diverged: Whether a logged loss was not finite.
    """

    def __init__(self) -> None:
        self.micro_batches = 0
        self.with_gradient = self.forward_only = 0.0
        self._examples: int | None = None
        self._without_accumulation = False
        self.step_seconds: list[float] = []
        self.diverged = False
        self._began: float | None = None
        self._hook: Any = None

    @property
    def passes(self) -> float:
        """Passes over a micro-batch, forward and backward together; a forward alone counts a third."""
        return (self.with_gradient + self.forward_only / 3) / max(self.micro_batches, 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        self._without_accumulation = args.gradient_accumulation_steps == 1
        reset_peak_memory()
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the hook off the model; also after a training that broke off."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = _now()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._micro_batch_ends()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._micro_batch_ends()
        if self._began is not None:
            self.step_seconds.append(_now() - self._began)
            self._began = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            self.diverged = True

    def _micro_batch_ends(self) -> None:
        self.micro_batches += 1
        self._examples = None

    def _count(self, model: nn.Module, inputs: Any, named: Any) -> None:
        if not model.training:
            return
        examples = _number_of_examples([*inputs, *named.values()])
        if self._examples is None:  # the micro-batch's first pass
            self._examples = examples
        part = examples / self._examples if examples and self._examples and self._without_accumulation else 1.0
        if torch.is_grad_enabled():
            self.with_gradient += part
        else:
            self.forward_only += part


def _number_of_examples(values: Iterable[Any]) -> int | None:
    """The first dimension of the first tensor that has one."""
    return next((len(value) for value in values if isinstance(value, torch.Tensor) and value.ndim), None)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def reset_peak_memory() -> None:
    """Begin to measure the peak anew: of the CUDA device, else of the process (Linux only)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # another system: `peak_memory` says None
        _CLEAR.write_text("5")


def peak_memory() -> float | None:
    """The peak since `reset_peak_memory` in MiB; None where it cannot be had."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found.group(1)) / 1024 if found else None


def weights_are_finite(model: nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
