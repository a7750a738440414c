"""How far the training is, and with which learning rate: what a method's schedule may go by."""

from __future__ import annotations

import torch
from torch import Tensor, optim


class Progress:
    """Counts the optimizer steps.

    Args:
        total_steps: how many the training makes in all; None if that is not known.

    Attributes:
        steps_made: those made so far; a resumed training counts on.
        repeated: forward and backward passes over a micro-batch, beyond its first.
        probed: forward passes over a micro-batch.

    Raises:
        ValueError: ``total_steps`` is no number of steps.
    """

    def __init__(self, total_steps: int | None = None) -> None:
        if total_steps is not None and (not isinstance(total_steps, int) or total_steps < 1):
            raise ValueError(
                f"total_steps={total_steps!r} is not valid: must be the whole number >= 1 of optimizer steps that the "
                "training makes (or None)"
            )
        self.total_steps = total_steps
        self.steps_made = 0
        self.repeated = 0.0
        self.probed = 0.0

    def pass_made(self, micro_batches: float) -> None:
        """Count a further pass over so many micro-batches."""
        if torch.is_grad_enabled():
            self.repeated += micro_batches
        else:
            self.probed += micro_batches

    def fraction(self) -> float:
        """The part of the training that lies behind, from 0 to 1."""
        if self.total_steps is None:
            raise ValueError(
                "the method goes by the progress of the training, whose length is not known: give total_steps, the "
                "number of optimizer steps that the training makes"
            )
        return min(self.steps_made / self.total_steps, 1.0)


def learning_rate(optimizer: optim.Optimizer) -> float | Tensor:
    """The learning rate of the coming step, of the optimizer's first group."""
    rate = optimizer.param_groups[0].get("lr")
    if rate is None:
        raise ValueError(
            f"the method goes by the learning rate, but {type(optimizer).__name__} finds its own: give it one (for "
            "Adafactor lr=... with relative_step=False), or use another base optimizer"
        )
    return rate


def peak_learning_rate(optimizer: optim.Optimizer) -> float | Tensor:
    """What a schedule scales: torch's schedulers note it in the group, as ``max_lr`` where they have a peak."""
    group = optimizer.param_groups[0]
    return next((group[name] for name in ("max_lr", "initial_lr") if name in group), learning_rate(optimizer))
