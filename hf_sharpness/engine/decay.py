"""At which optimizer step a learning rate's schedule begins its last fall, found by looking ahead."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim.lr_scheduler import LambdaLR

ROUNDING = 1e-12
"""Below this share of the highest rate a change is rounding."""

INSTEAD = "give a fraction, such as .75, or use a schedule that stays and then falls, such as warmup_stable_decay"


def last_fall(rates: Sequence[float]) -> int | None:
    """The last step with the rate from which the rates fall and never rise again; None where they do not fall.

    Args:
        rates: the learning rate of every step.
    """
    least = ROUNDING * max(rates, default=0.0)
    end = len(rates) - 1
    start = end
    while start > 0 and rates[start] <= rates[start - 1] + least:
        start -= 1
    return next((step for step in range(start, end) if rates[step + 1] < rates[step] - least), None)


def decay_step(scheduler: Any, total_steps: int) -> int:
    """The optimizer step, counted from 0, at which the schedule begins its last fall.

    Args:
        scheduler: torch's, or Accelerate's around it; before its first step, but for a ``LambdaLR``.
        total_steps: how many optimizer steps the training makes.

    Raises:
        ValueError: it has no such step, or cannot be looked ahead in.
    """
    if scheduler is None:
        raise ValueError(
            "sam_start='decay' (start in a plain loop) goes by the learning rate's schedule, which is not known: give "
            "scheduler, the learning rate's scheduler"
        )
    scheduler, stride = _unwrapped(scheduler)
    kind = type(scheduler).__name__
    try:
        rates = _rates(scheduler, total_steps, stride)
    except Exception as error:  # schedulers of every kind come by
        raise ValueError(
            f"sam_start='decay' (start in a plain loop): the course of {kind} cannot be known in advance ({error}): "
            f"{INSTEAD}"
        ) from error
    step = last_fall(rates)
    if not step:
        falls = "does not fall at its end" if step is None else "falls from its first step on"
        raise ValueError(
            f"sam_start='decay' (start in a plain loop): the learning rate of {kind} {falls}, within the {total_steps} "
            f"optimizer steps: {INSTEAD}"
        )
    return step


def to_look_ahead_in(scheduler: Any, known: int | None) -> Any:
    """``known``, the step that a checkpoint says; the scheduler if that is None, or if it knows its past (LambdaLR)."""
    return scheduler if known is None or type(_unwrapped(scheduler)[0]) is LambdaLR else known


def _unwrapped(scheduler: Any) -> tuple[Any, int]:
    """The scheduler in Accelerate's wrappers, and how often it is stepped in an optimizer step."""
    stride = 1
    while hasattr(scheduler, "scheduler"):
        if type(scheduler).__name__ == "AcceleratedScheduler":
            with_optimizer = scheduler.step_with_optimizer and not scheduler.split_batches
            stride = torch.distributed.get_world_size() if with_optimizer and torch.distributed.is_initialized() else 1
        scheduler = scheduler.scheduler
    return scheduler, stride


def _rates(scheduler: Any, total_steps: int, stride: int) -> list[float]:
    """The learning rate of every optimizer step, of the first group."""
    if type(scheduler) is LambdaLR:
        base, factor = float(scheduler.base_lrs[0]), scheduler.lr_lambdas[0]
        return [base * float(factor(step * stride)) for step in range(total_steps)]
    if scheduler.last_epoch > 0:
        raise ValueError("it has made steps already: look ahead before it has, or before its state is loaded")
    optimizer = scheduler.optimizer
    stand_in = optim.SGD([torch.zeros(())], lr=1.0)
    stand_in.param_groups = [
        {name: _own(value) for name, value in group.items() if name != "params"} | {"params": []}
        for group in optimizer.param_groups
    ]
    twin = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer steps
        for _ in range(total_steps):
            rates.append(float(stand_in.param_groups[0]["lr"]))
            for _ in range(stride):
                twin.step()
    return rates


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
