"""What the trainings under way with a sharpness-aware method have done, for whoever tells the user of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class Tally:
    """Of one training."""

    args: Any


_under_way: list[Tally] = []


@contextlib.contextmanager
def tallied(args: Any) -> Iterator[Tally]:
    """Inside, a training with these arguments is under way, and its method at work."""
    tally = Tally(args)
    _under_way.append(tally)
    try:
        yield tally
    finally:
        _under_way[:] = [other for other in _under_way if other is not tally]


def tally_of(args: Any) -> Tally | None:
    """That of the training under way with these arguments; None where there is none with a method."""
    return next((tally for tally in reversed(_under_way) if tally.args is args), None)
