"""What the user is told of a training with a sharpness-aware method, and how it follows its arguments."""

from __future__ import annotations

from typing import Any

from transformers import TrainerState

from ..engine import Engine
from .changes import LiveArguments
from .measuring import is_to_be_logged
from .notices import say
from .signs import Signs
from .summary import Summary


class Watch:
    """Looks on as one training goes by.

    Args:
        trainer: the Trainer.
        engine: its engine, before the first step.
    """

    def __init__(self, trainer: Any, engine: Engine) -> None:
        self.engine = engine
        self.arguments = LiveArguments(trainer.args, engine)
        self.summary = Summary(trainer, engine)
        self.signs = Signs(engine.method, trainer.model, trainer.args)

    def begin(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            say(self.summary.start())

    def before_step(self, state: TrainerState) -> None:
        self.engine.course.measures = is_to_be_logged(self.arguments.args, state)
        self.arguments.before_step(state.is_world_process_zero)

    def micro_batch(self) -> None:
        self.summary.micro_batch()

    def step(self) -> None:
        self.summary.step()
        self.signs.step(self.engine.metrics)

    def log(self, state: TrainerState, logs: dict[str, float]) -> None:
        self.signs.log(logs, state.epoch or 0.0, state.global_step, state.is_world_process_zero)

    def end(self, state: TrainerState) -> None:
        self.summary.end(state)
