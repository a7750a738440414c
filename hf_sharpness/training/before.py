"""What the Trainer and its engine were before an optimizer step, for the step to be taken back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..engine import Engine
from ..engine.state import copied
from ..engine.state.paths import Path
from ..engine.state.tensors import Tensors
from .counters import ChangedByOthers


class BeforeStep:
    """The state from which a step began, but for the weights, which the engine puts back.

    Args:
        trainer: the Trainer, before the first micro-batch of a step.
        engine: its engine.
    """

    def __init__(self, trainer: Any, engine: Engine) -> None:
        self.trainer = trainer
        self.engine = engine
        self.counters = ChangedByOthers(trainer)
        parameters = [p for p in engine.model.parameters() if p.requires_grad]
        self.state = engine.state.before_step()
        self.method = copied(vars(engine.method))
        self.steps_made = engine.course.progress.steps_made
        self.kept = {name: dict(tensors) for name, tensors in engine.course.kept.values.items()}
        # Usually there are none.
        self.gradients = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]

    def call_ended(self) -> None:
        """A micro-batch of the step is done with; what changes until ``call_begins`` is the training loop's doing."""
        self.counters.pause()

    def call_begins(self) -> None:
        """The next one begins."""
        self.counters.go_on()

    def restore(self) -> None:
        """All of it as it was."""
        own = vars(self.trainer)
        of_the_loop = {name: own[name] for name in self.counters.names if name in own}
        # The loop adds to some of its tensors in place (transformers' _tr_loss), and the state puts back contents.
        found: list[tuple[Path, Tensor]] = [((None, n), v) for n, v in of_the_loop.items() if isinstance(v, Tensor)]
        contents = Tensors(found, {path for path, _ in found}, large=True, on_weights=lambda region: False)
        self.state.restore()
        own.update(of_the_loop)
        contents.restore()
        vars(self.engine.method).clear()
        vars(self.engine.method).update(self.method)
        self.engine.course.progress.steps_made = self.steps_made
        self.engine.course.kept.values = self.kept
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
