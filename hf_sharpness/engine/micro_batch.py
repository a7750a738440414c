"""A micro-batch as the engine remembers it for further passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .state import Moment

Closure = Callable[[], Tensor]
"""Forward and backward of one micro-batch: adds to p.grad, returns the micro-batch's share of the batch's mean loss."""


OUTSIDE = (
    "a further pass needs a part of the graph that the first one has used up: something that depends on the weights "
    "was computed outside of what is repeated. Compute all of it in the pass: in a plain loop in the closure (forward, "
    "loss and backward), with the Trainer in compute_loss. Or a pass changes in place what its own backward needs. "
    "torch's words: {words}"
)
_TOLD_BY = ("backward through the graph a second time", "modified by an inplace operation")
"""What torch says then, the second where the graph was to be kept (``retain_graph=True``)."""


class MicroBatch(NamedTuple):
    """A micro-batch whose first pass has been made: its closure, and the state from which that pass began.

    ``size`` is less than 1 where the closure is one for a part of the micro-batch.
    """

    closure: Closure
    before: Moment
    size: float = 1.0

    def repeat(self) -> Tensor:
        """One more pass, from the state as it is; returns its loss.

        Raises:
            RuntimeError: a part of the graph was made outside of the closure.
        """
        try:
            return self.closure().detach()
        except RuntimeError as error:
            if any(words in str(error) for words in _TOLD_BY):
                raise RuntimeError(OUTSIDE.format(words=str(error).partition(". ")[0])) from error
            raise
