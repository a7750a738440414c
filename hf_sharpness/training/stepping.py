"""Refuses a training step in which an optimizer steps, or text is generated: neither can be repeated."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from ..engine.for_a_while import hooked
from ..engine.optimizers import base_optimizer
from ..engine.state.bounds import own_classes

OPTIMIZER_STEPS = (
    "an optimizer ({optimizer}) steps within {where}. A sharpness-aware step goes through it again, where the "
    "optimizer would step again: step it in a callback (on_step_end), or train with one of transformers' own optim"
)
GENERATES = (
    "{where} generates text. A sharpness-aware step goes through it again, and moved weights would generate another "
    "text: generate in _prepare_inputs, or in a training_step of yours before it calls super().training_step(), or "
    "train with one of transformers' own optim"
)


class OptimizerGuard:
    """Stops an optimizer that would step within a training step, before it does.

    Manual optimisation and adversarial networks do that; a further pass over the step would do it again. An optimizer
    that the step makes for itself, as an attack on the inputs may, is left alone, and so is one that objects of the
    user's hold with all that it steps, as adversarial training by a copy of the model may: that is put back.

    Args:
        refuse: raises the error, given the optimizer.
        puts_back: whether what an optimizer holds is put back between the passes of the step.
    """

    def __init__(self, refuse: Callable[[Optimizer], None], puts_back: Callable[[Optimizer], bool]) -> None:
        self.refuse = refuse
        self.puts_back = puts_back
        self.watching = False
        self.trained: set[int] = set()
        self.held: set[int] = set()
        self.earlier: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.now: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    @contextlib.contextmanager
    def installed(self, trained: Iterable[nn.Parameter], holder: object) -> Iterator[None]:
        """Around a training step.

        Args:
            trained: the parameters that the base optimizer steps.
            holder: the Trainer; an optimizer among its attributes was not made in this step.
        """
        self.trained = {id(p) for p in trained}
        held = [value for value in vars(holder).values() if isinstance(value, Optimizer)]
        self.held = {id(base_optimizer(optimizer)) for optimizer in held}
        with hooked(register_optimizer_step_pre_hook, self._before_step), self.watched():
            yield

    @contextlib.contextmanager
    def watched(self, watching: bool = True) -> Iterator[None]:
        """Around a pass of the user's code; or, with False, around code in which an optimizer may step."""
        before = self.watching, self.now
        self.watching, self.now = watching, weakref.WeakSet()
        try:
            yield
        finally:
            self.earlier.update(self.now)
            self.watching, self.now = before

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.watching:
            return
        trains = any(id(p) in self.trained for group in optimizer.param_groups for p in group["params"])
        not_made_here = id(optimizer) in self.held or optimizer in self.earlier
        if trains or (not_made_here and not self.puts_back(optimizer)):
            self.refuse(optimizer)
        self.now.add(optimizer)


def _has_loss_of_its_own(trainer: Any, stock: Any) -> bool:
    """Whether loss or model is other than transformers' own code."""
    own_loss = type(trainer).compute_loss is not stock.compute_loss or trainer.compute_loss_func is not None
    return own_loss or bool(own_classes(type(trainer.model)))


@contextlib.contextmanager
def generation_refused(trainer: Any, stock: Any, refuse: Callable[[], None], whole: bool) -> Iterator[None]:
    """Inside, ``generate`` of the Trainer's model, or of a module in it, raises ``refuse``'s error.

    At moved weights it would write another text, so that a further pass would not be one over the same batch.

    Args:
        trainer: the Trainer.
        stock: transformers' own; where loss and model are its code, too, nothing is done.
        refuse: raises an error.
        whole: a ``training_step`` of the user's is what is repeated.
    """

    def generate(*args: Any, **kwargs: Any) -> None:
        refuse()

    looked_for = whole or _has_loss_of_its_own(trainer, stock)
    modules = list(trainer.model.modules()) if looked_for else []
    modules = [m for m in modules if callable(getattr(type(m), "generate", None)) and "generate" not in vars(m)]
    for module in modules:
        vars(module)["generate"] = generate
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["generate"]
