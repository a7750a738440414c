"""A micro-batch as the engine remembers it for further passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .state import Moment

Closure = Callable[[], Tensor]
"""Forward and backward of one micro-batch: adds to p.grad, returns the micro-batch's share of the batch's mean loss."""


class MicroBatch(NamedTuple):
    """A micro-batch whose first pass has been made: its closure, and the state from which that pass began.

    ``size`` is less than 1 where the closure is one for a part of the micro-batch.
    """

    closure: Closure
    before: Moment
    size: float = 1.0
