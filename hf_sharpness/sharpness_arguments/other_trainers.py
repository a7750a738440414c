"""Stops a Trainer that knows nothing of sharpness-aware steps from training with arguments that ask for them.

transformers' own would say that it "cannot instantiate unsupported optimizer: wsam"; or, with an optimizer that it was
given, train without the method and say nothing.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState


@functools.cache
def method_check() -> type[TrainerCallback]:
    """A callback among the default ones of every Trainer; this package's own Trainers take it out of theirs.

    Made when a Trainer is: under `hf-sharpness run` the arguments, and with them this module, are imported while
    transformers is at the module of its callbacks.
    """
    from transformers import TrainerCallback

    class MethodCheck(TrainerCallback):
        def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
            if getattr(args, "uses_sharpness", False):
                refuse(args.optim)

    return MethodCheck


def refuse(optim: str) -> NoReturn:
    """Raise the error, with the remedy."""
    raise ValueError(
        f"optim={optim!r} needs this package's Trainer, and this one is transformers' own or derived from it: import "
        "both (`from hf_sharpness import Trainer, TrainingArguments`), put SharpnessTrainerMixin before the Trainer of "
        "another library, or start the script as it was with `hf-sharpness run`"
    )


def look_out(optim: str) -> None:
    """Called by the arguments when a Trainer is made, which has loaded the modules that define it."""
    trainer = sys.modules.get("transformers.trainer")
    callbacks = getattr(trainer, "DEFAULT_CALLBACKS", None)
    if callbacks is not None and method_check() not in callbacks:
        callbacks.append(method_check())
    # Private: where a Trainer that makes its optimizer itself looks the name up, which it does before any callback.
    handlers = getattr(sys.modules.get("transformers.trainer_optimizer"), "_OPTIMIZER_HANDLERS", {})
    handlers.setdefault(optim, lambda context: refuse(optim))
