"""The outermost ``training_step`` of a Trainer, wrapped while it trains."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from transformers.trainer_callback import CallbackHandler

from .accumulation import AccelerateState

Step = Callable[..., Any]
"""A ``training_step``, bound to its Trainer."""


class Call:
    """One call of the outermost ``training_step``, for one micro-batch.

    Args:
        step: the outermost ``training_step``.
        args: what the loop gave it: model, inputs and more.
        kwargs: the same by name.
        last: whether the micro-batch is the last of its optimizer step.
        accelerate: Accelerate's own counters at its start.
    """

    def __init__(
        self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], last: bool, accelerate: AccelerateState
    ) -> None:
        self.step, self.args, self.kwargs = step, args, kwargs
        self.last = last
        self.accelerate = accelerate
        self.inner_calls = 0
        self.differs = False
        self.refusal: ValueError | None = None
        self.kept: Any = None
        self.loss: Any = None

    @property
    def name(self) -> str:
        """The ``training_step``'s, with the class that defines it."""
        return getattr(self.step, "__qualname__", "training_step")

    @property
    def inputs(self) -> Any:
        """The micro-batch."""
        return self.kwargs["inputs"] if "inputs" in self.kwargs else self.args[1]

    def run(self, inputs: Any) -> Any:
        """The outermost ``training_step`` on these inputs."""
        try:
            if "inputs" in self.kwargs:
                return self.step(*self.args, **{**self.kwargs, "inputs": inputs})
            return self.step(self.args[0], inputs, *self.args[2:], **self.kwargs)
        finally:
            if self.refusal is not None:  # where the user's code has caught it
                raise self.refusal


def wrap_outermost(trainer: Any, outermost: Callable[[Step, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Put ``outermost`` before the Trainer's ``training_step``, whoever has defined it, as an attribute of its own.

    Args:
        trainer: the Trainer.
        outermost: gets the ``training_step`` that was there, bound, with the arguments of every call.
    """
    own = vars(trainer).get("training_step")
    step = trainer.training_step

    @functools.wraps(step)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        return outermost(step, args, kwargs)

    training_step._stands_before = own  # type: ignore[attr-defined]
    vars(trainer)["training_step"] = training_step


def unwrapped(attributes: dict[str, Any]) -> None:
    """Take ``wrap_outermost``'s wrapper out of a Trainer's attributes; a user's own is put back."""
    step: Any = attributes.get("training_step")
    if not hasattr(step, "_stands_before"):
        return
    del attributes["training_step"]
    if step._stands_before is not None:
        attributes["training_step"] = step._stands_before


def within_a_callback(training: CodeType) -> bool:
    """Whether a callback of the Trainer is calling, and not its loop, which is within the function ``training``."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not training:
        if frame.f_code is CallbackHandler.call_event.__code__:
            return True
        frame = frame.f_back
    return False
