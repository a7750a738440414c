"""Mistakes in a training loop of one's own that would train something else than what is meant, in silence."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .earlier import UNREDUCED
from .engine import Engine
from .micro_batch import Closure
from .parallel import unreduced_gradients

A_CLOSURE = (
    "must be a function that does forward and backward and returns the loss, or a list of such functions:\n"
    "    def closure():\n        loss = loss_of(model, batch)\n        loss.backward()\n        return loss\n"
    "    loss = method.backward(closure)"
)
NO_BACKWARD = (
    "the closure has left no gradient on any parameter of the optimizer, and has not called loss.backward(): a closure "
    "does forward and backward, and returns the loss"
)
ONCE_FOR_EACH = (
    "method.backward was called again before optimizer.step(): the gradients add up, but each call has perturbed the "
    "weights by the gradient of its own closures alone, as scope='micro_batch' does. To perturb by the gradient of the "
    "whole batch give all of its micro-batches to one call: method.backward([closure, ...])"
)
ONE_CLOSURE = (
    "fraction={fraction} takes the first of a step's closures, and there is one: split the batch into micro-batches "
    "and give a list of closures, one for each, or give part=..., a closure for the first examples, or use fraction=1"
)
PART = (
    "part=... goes with one closure and a fraction of less than 1, and there are fraction={fraction} and {number} "
    "closures: leave it out"
)
UNSCALED = (
    "each of the {number} closures runs backward from a mean loss, and their gradients add up, to {number} times that "
    "of the batch's mean loss: have each closure divide its loss, by {number} where the micro-batches are equally large"
)
CLOSURE_IN_STEP = (
    "optimizer.step(closure) runs its closure itself, in the place of what method.backward has left in p.grad, and an "
    "optimizer that needs one (LBFGS) runs it several times. Call optimizer.step() without a closure, of an optimizer "
    "that steps once with p.grad"
)
STEP_IN_BACKWARD = (
    "the closure of method.backward calls optimizer.step(), which would move the weights in every pass: a closure does "
    "forward and backward, and returns the loss. Call optimizer.step() once, after method.backward"
)
BACKWARD_IN_STEP = (
    "method.backward was called by the closure of optimizer.step(closure), too late for what {setting} adds to the "
    "step: call it before optimizer.step(), without a closure, or use {remedy}"
)


class Usage:
    """Looks at every call of a loop's ``backward``.

    Args:
        engine: the loop's engine.
        scale: returns the factor by which the closures scale their loss, or None.
    """

    def __init__(self, engine: Engine, scale: Callable[[], Tensor] | None) -> None:
        self.engine = engine
        self.scale = scale
        self.unstepped = self.stepping = self.in_passes = False
        self.warned = False
        self.idle: list[bool] = []
        self.factors: list[float | None] = []
        engine.habits.return_the_loss = True
        engine.optimizer.register_step_pre_hook(self._steps)
        engine.optimizer.register_step_post_hook(self._stepped)

    def _steps(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.in_passes:
            raise RuntimeError(STEP_IN_BACKWARD)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None and self.unstepped and self.engine.weights.have_gradient():
            raise RuntimeError(CLOSURE_IN_STEP)
        self.stepping = closure is not None

    def _stepped(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.unstepped = self.stepping = False

    def begins(self, closure: Any, part: Any = None) -> list[Closure]:
        """The closures of a call.

        Args:
            closure: one, or a list.
            part: one for some of the examples.

        Raises:
            TypeError: it got something else.
            ValueError: it got none, or one alone where further passes go over a part of them.
            RuntimeError: the optimizer is stepping.
        """
        method = self.engine.method
        stepping, self.stepping = self.stepping, False
        if stepping and method.adds_after_step:
            names = {"setting": method.after_step_setting({}), "remedy": method.after_step_remedy({})}
            raise RuntimeError(BACKWARD_IN_STEP.format(**names))
        closures = [closure] if callable(closure) else closure
        if isinstance(closures, (Tensor, str)) or not isinstance(closures, Sequence):
            raise TypeError(f"closure={_named(closure)} is not valid: it {A_CLOSURE}")
        for element in closures:
            if not callable(element):
                raise TypeError(f"closure=[..., {_named(element)}, ...] is not valid: each {A_CLOSURE}")
        if not closures:
            raise ValueError("closure=[] is not valid: give at least one function that does forward and backward")
        fraction = self.engine.fraction.fraction
        if len(closures) == 1 and fraction < 1 and part is None and not self.engine.method.is_plain:
            raise ValueError(ONE_CLOSURE.format(fraction=fraction))
        if part is not None and not callable(part):
            raise TypeError(f"part={_named(part)} is not valid: it {A_CLOSURE}")
        if part is not None and (fraction == 1 or len(closures) > 1):
            raise ValueError(PART.format(fraction=fraction, number=len(closures)))
        if self.unstepped and not self.warned and self.engine.scope.name != "micro_batch" and self._has_gradient():
            self.warned = True
            warnings.warn(ONCE_FOR_EACH, stacklevel=4)
        self.unstepped = True
        self.idle, self.factors = [], []
        self.engine.habits.asks_factors = len(closures) > 1
        return list(closures)

    @contextlib.contextmanager
    def passes(self) -> Iterator[None]:
        """Around the passes of a call; in them the base optimizer may not step."""
        self.in_passes = True
        try:
            yield
        finally:
            self.in_passes = False

    def _has_gradient(self) -> bool:
        """Whether there is one that is not zero, as ``zero_grad(set_to_none=False)`` leaves it."""
        return any(bool(p.grad.any()) for p in self.engine.parameters() if p.grad is not None)

    def recorded(self) -> None:
        """A closure's first pass has been made."""
        self.idle.append(self.engine.habits.idle)
        self.factors += self.engine.habits.factors

    def ends(self) -> None:
        """All first passes of a call have been made.

        Raises:
            RuntimeError: they have left no gradient, by mistake.
        """
        if all(self.idle):
            raise RuntimeError(NO_BACKWARD)
        reduced = any(p.grad is not None for p in self.engine.parameters())
        if not reduced and any(True for _ in unreduced_gradients(self.engine.model)):
            raise RuntimeError(UNREDUCED)
        number = len(self.idle)
        factors = [factor for factor in self.factors if factor is not None]
        if number > 1 and len(factors) == len(self.factors) == number:
            scale = 1.0 if self.scale is None else float(self.scale())
            if all(math.isclose(factor, scale, rel_tol=1e-5) for factor in factors):
                warnings.warn(UNSCALED.format(number=number), stacklevel=4)


def _named(value: Any) -> str:
    return f"a {type(value).__name__}"
