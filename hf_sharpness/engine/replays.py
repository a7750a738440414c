"""Holds a method to the number of further passes that it announces: the passes of all ranks go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..methods import Method, Step
from .parallel import largest_over_ranks


class Replays:
    """The further passes of one step: how many the method announced, and how many it has made.

    Args:
        method: the method.
        step: the step that it is about to run.
        groups: returns the process groups whose ranks share the effective batch.
        device: where ranks can compare numbers.

    Raises:
        ValueError: the number announced is none, or not the same on every rank (only looked at where the method
            decides it per step).
    """

    def __init__(self, method: Method, step: Step, groups: Callable[[], list[Any]], device: torch.device) -> None:
        self.name = method.name
        self.made = 0
        self.announced = method.replays_of(step)
        valid = isinstance(self.announced, int) and not isinstance(self.announced, bool) and self.announced >= 0
        number = int(self.announced) if valid else -1
        if method.decides_replays and not _alike(number, groups(), device):
            raise ValueError(
                f"the method {self.name!r} announced {number} further passes of this step here, and another number on "
                "another rank: decide it by what all ranks have in common (step.number, step.progress, norms, "
                "step.mean_over_ranks(loss))"
            )
        if not valid:
            raise ValueError(
                f"the method {self.name!r} announced {self.announced!r} further passes: return a whole number >= 0"
            )

    def one_more(self) -> bool:
        """Count a pass that is about to be made; returns whether it is the last.

        Raises:
            RuntimeError: there are more than were announced.
        """
        if self.made == self.announced:
            raise RuntimeError(f"the method {self.name!r} makes more than {self._promise()}")
        self.made += 1
        return self.made == self.announced

    def skip_to_last(self) -> bool:
        """Count all but the last as made; returns whether that one is still to be made."""
        if self.made == self.announced:
            return False
        self.made = self.announced - 1
        return True

    def check_all_made(self) -> None:
        """Raise a RuntimeError if there were fewer than announced."""
        if self.made != self.announced:
            raise RuntimeError(f"the method {self.name!r} makes {self.made} instead of {self._promise()}")

    def _promise(self) -> str:
        return (
            f"the {self.announced} further passes that it announced for this step: have `replays` (or "
            "`replays_of(step)`) return the number of step.replay() calls in `run`"
        )


def _alike(number: int, groups: list[Any], device: torch.device) -> bool:
    if not groups:
        return True
    largest, negated_smallest = largest_over_ranks(torch.tensor([number, -number], device=device), groups).tolist()
    return largest == -negated_smallest
