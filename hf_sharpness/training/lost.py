"""Notices a further pass that was lost: a training step may catch its own errors, such as those of memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from ..engine import Engine, for_a_while
from .outermost import Call

LOST = (
    "{where} ran a backward pass in one of two passes over the same batch, and none in the other: it seems to catch "
    "its own errors, of memory for instance (a further pass needs room for one copy of the trainable weights more)"
)
LEFT_OUT = LOST + ". This optimizer step is left out, as a batch is whose only pass fails"
CANNOT = LOST + ". The step cannot be left out here: use smaller batches, or let the error through"


class LostPass(RuntimeError):
    """Of two passes over a micro-batch one has run a backward pass."""


class BackwardPasses:
    """Compares the passes over one micro-batch: a further one runs a backward pass if the first did.

    Only those through ``Accelerator.backward`` are known, which a training step that catches errors of its own calls.

    Args:
        accelerator: the Trainer's.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.first: bool | None = None

    @contextlib.contextmanager
    def compared(self) -> Iterator[None]:
        """Around a pass, the first of which the others are compared with.

        Raises:
            LostPass: the pass is not like the first.
        """
        backward, ran = self.accelerator.backward, False

        def noted(*args: Any, **kwargs: Any) -> Any:
            nonlocal ran
            result = backward(*args, **kwargs)
            ran = True
            return result

        with for_a_while.has(self.accelerator, "backward", noted):
            yield
        if self.first is None:
            self.first = ran
        elif self.first is not ran:
            raise LostPass


def tell_left_out(engine: Engine, call: Call) -> None:
    """Warn that the optimizer step is left out, a pass of which was lost.

    Args:
        engine: takes the step.
        call: the micro-batch whose pass it was.

    Raises:
        RuntimeError: other micro-batches or ranks go on with the step.
    """
    weights = engine.weights
    if not call.last or weights.rank_groups() or not weights.gradients_are_visible:
        raise RuntimeError(CANNOT.format(where=call.name)) from None
    warnings.warn(LEFT_OUT.format(where=call.name), stacklevel=2)
