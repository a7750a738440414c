"""Which steps are looked at closely."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

PATIENCE = 10
"""Checks without a step of the optimizer, after which the next one is not waited for."""


def is_power_of_ten(number: int) -> bool:
    """Whether it is 1, 10, 100, ...: often at first, and in a long training next to nothing."""
    return str(number).strip("0") == "1"


class CheckedSteps:
    """Steps 1, 10, 100, ... of a training, the first of every epoch, and the first after a resume.

    State may begin to change late: queues fill up, averages start after a warm-up. A step stays the one to be checked
    until it has been and the optimizer has stepped: under a GradScaler the first ones usually overflow.

    Args:
        optimizer: the base optimizer.

    Attributes:
        due: whether the step under way, or the next one, is checked.
        checked: how often it has been.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.due = True
        self.checked = 0
        self.hook = optimizer.register_step_post_hook(self._optimizer_stepped)

    def follow(self, optimizer: Optimizer) -> None:
        """Another base optimizer makes the steps from now on."""
        self.hook.remove()
        self.hook = optimizer.register_step_post_hook(self._optimizer_stepped)

    def close(self) -> None:
        """Take the hook off the optimizer."""
        self.hook.remove()

    def step_begins(self, number: int) -> bool:
        """Take note of a step's number in the training, from 1 on; returns whether it is due."""
        if self.checked == PATIENCE:  # another optimizer steps
            self.due, self.checked = False, 0
        self.due = self.due or is_power_of_ten(number)
        return self.due

    def was_checked(self) -> None:
        """The step under way has been checked."""
        self.checked += 1

    def epoch_begins(self) -> None:
        """The next step is the first of an epoch."""
        self.due = True

    def _optimizer_stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.checked:
            self.due, self.checked = False, 0
