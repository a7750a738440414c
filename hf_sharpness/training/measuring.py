"""In which steps the distance that the weights move is measured: those that the Trainer is going to log."""

from __future__ import annotations

from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy


def is_to_be_logged(args: Any, state: TrainerState) -> bool:
    """Whether the Trainer logs after the step that is about to begin, by its arguments; the last one counts too.

    What a callback asks for (``control.should_log``) is not known before the step.

    Args:
        args: the training arguments.
        state: as it is before the step.
    """
    step = state.global_step + 1
    if step == state.max_steps or (step == 1 and args.logging_first_step):
        return True
    if args.logging_strategy == IntervalStrategy.STEPS:
        return bool(state.logging_steps) and step % state.logging_steps == 0
    if args.logging_strategy == IntervalStrategy.EPOCH:
        # How long an epoch is can be told once a step has been made.
        return not state.epoch or step % max(1, round(state.global_step / state.epoch)) == 0
    return False
