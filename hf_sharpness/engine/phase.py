"""Which optimizer steps of a training are sharpness-aware, and how long the perturbation is in each of them."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator

from torch import Tensor, optim

from ..methods import Method, Options
from ..methods.options import DECAY
from .decay import decay_step
from .progress import Progress, learning_rate, peak_learning_rate

RAMP = 10
"""Of ``rho_schedule="linear"``: the ramp takes one of so many sharpness-aware steps."""


class Phase:
    """The steps that are sharpness-aware. All others are the base optimizer's own.

    A step is known by its number in the training, from 0 on; one that a ``GradScaler`` skips counts as any other.

    Args:
        options: ``start``, ``stop`` and ``rho_schedule``.
        method: the method.
        optimizer: the base optimizer.
        progress: counts the steps.
        scheduler: the learning rate's, for ``start="decay"``; or the step that it says, where that is known.

    Attributes:
        first: the first step that is sharpness-aware.
        end: the first one after them; None: there is none.

    Raises:
        ValueError: the options need what is not known, or make no sense together.
    """

    def __init__(
        self,
        options: Options,
        method: Method,
        optimizer: optim.Optimizer,
        progress: Progress,
        scheduler: object = None,
    ) -> None:
        options.check_together(method)
        self.options = options
        self.method = method
        self.progress = progress
        total_steps = progress.total_steps
        for name, usual in (("start", 0.0), ("stop", 1.0)):
            if total_steps is None and getattr(options, name) != usual:
                raise ValueError(
                    f"{name}={getattr(options, name)!r} goes by the length of the training, which is not known: give "
                    "total_steps, the number of optimizer steps that the training makes"
                )
        if total_steps is None and options.rho_schedule == "linear":
            raise ValueError(
                "rho_schedule='linear' goes by the number of sharpness-aware steps, which is not known: give "
                "total_steps, the number of optimizer steps that the training makes"
            )
        if options.rho_schedule == "lr":
            learning_rate(optimizer)  # there must be one
        total = total_steps or 0
        self.end = None if options.stop == 1 else first_from(options.stop, total)
        if options.start == DECAY:
            self.first = scheduler if isinstance(scheduler, int) else decay_step(scheduler, total)
        else:
            self.first = first_from(float(options.start), total)
        if options.start == DECAY and self.end is not None and self.first >= self.end:
            raise ValueError(
                f"sam_start='decay' is step {self.first} of {total}, and sam_stop={options.stop!r} step {self.end}, "
                "which leave no step to be sharpness-aware: leave out sam_stop"
            )
        if self.planned == 0:
            warnings.warn(
                f"none of the {total} optimizer steps will be sharpness-aware with sam_start={options.start!r} and "
                f"sam_stop={options.stop!r}: train for longer, or begin earlier",
                stacklevel=2,
            )

    @property
    def number(self) -> int:
        """The number of the step that is being made, or is to be made next."""
        return self.progress.steps_made

    @property
    def is_plain(self) -> bool:
        """Whether that step is the base optimizer's own."""
        return self.method.is_plain or not self.includes(self.number)

    @property
    def is_whole(self) -> bool:
        """Whether every step is sharpness-aware."""
        return self.first == 0 and self.end is None

    def includes(self, number: int) -> bool:
        """Whether the step of this number is sharpness-aware."""
        return number >= self.first and (self.end is None or number < self.end)

    def count_before(self, number: int) -> int:
        """How many of the steps before this one are sharpness-aware."""
        number = number if self.end is None else min(number, self.end)
        return max(0, number - self.first)

    @property
    def planned(self) -> int | None:
        """How many steps of the training are to be sharpness-aware; None if its length is not known."""
        return None if self.progress.total_steps is None else self.count_before(self.progress.total_steps)

    def rho_factor(self, optimizer: optim.Optimizer) -> float | Tensor:
        """What the method's rho is times in the step, which is sharpness-aware.

        Args:
            optimizer: the base optimizer, for its learning rate.
        """
        if self.options.rho_schedule == "lr":
            rate, peak = learning_rate(optimizer), peak_learning_rate(optimizer)
            return rate / peak if isinstance(peak, Tensor) or peak else 1.0
        if self.options.rho_schedule == "linear":
            return min(1.0, (self.count_before(self.number) + 1) / max(1, math.ceil((self.planned or 0) / RAMP)))
        return 1.0

    @contextlib.contextmanager
    def rho_of_step(self, optimizer: optim.Optimizer) -> Iterator[None]:
        """Inside, the method's rho, and what else of it is a length, are those of this step."""
        if self.options.rho_schedule == "constant":
            yield
            return
        factor, lengths = self.rho_factor(optimizer), self.method.lengths()
        try:
            for name, length in lengths.items():
                setattr(self.method, name, length * factor)
            yield
        finally:
            for name, length in lengths.items():
                setattr(self.method, name, length)


def first_from(fraction: float, total_steps: int) -> int:
    """The number of the first step before which at least this part of the steps lies.

    Args:
        fraction: from 0 to 1.
        total_steps: how many steps there are.
    """
    step = math.floor(fraction * total_steps)
    while step and (step - 1) / total_steps >= fraction:
        step -= 1
    while total_steps and step / total_steps < fraction:  # .1 * 30 is a little more than 3
        step += 1
    return step
