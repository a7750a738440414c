"""Accelerate's count of micro-batches, for every pass over one to find the same."""

from __future__ import annotations

from typing import Any


class AccelerateState:
    """How far Accelerate has counted, which ``accelerator.accumulate()`` moves, and what it says of this micro-batch.

    Args:
        accelerator: the Trainer's.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.step = accelerator.step
        self.sync_gradients = accelerator.sync_gradients

    def restore(self) -> None:
        """Both are again what they were."""
        self.accelerator.step = self.step
        # Private in Accelerate, and what Trainer itself calls before every micro-batch.
        self.accelerator.gradient_state._set_sync_gradients(self.sync_gradients)


def micro_batches_of_a_step(trainer: Any) -> int:
    """How many the step under way has: fewer at the end of an epoch, as the Trainer's own loop notes."""
    return getattr(trainer, "current_gradient_accumulation_steps", None) or trainer.args.gradient_accumulation_steps
