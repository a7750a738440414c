"""The callback by which every Trainer under `hf-sharpness run` reports its steps."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from ..training.callback import is_at_work
from . import reports


class StepReport(TrainerCallback):
    """Reports when the Trainer is made, and how many steps it made when a training ends."""

    def __init__(self) -> None:
        self.steps = self.first_step = 0
        self.with_method = False

    def on_init_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._report(args)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.first_step = state.global_step

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.steps += state.global_step - self.first_step
        self.with_method |= is_at_work(args)
        self._report(args)

    def _report(self, args: Any) -> None:
        optim = getattr(args.optim, "value", args.optim)
        reports.write(str(id(self)), self.steps, optim, self.with_method)
