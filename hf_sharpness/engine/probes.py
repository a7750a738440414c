"""The loss at other weights than those of a pass: forward only; with backward where it is made from derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import vectors
from ..vectors import Vector
from . import rounding
from .climbs import Climbs
from .course import Course
from .earlier import EarlierGradients
from .for_a_while import run_under
from .habits import Habits
from .micro_batch import MicroBatch
from .optimizers import maximizes
from .scopes import Scope
from .skip_backward import SkipBackward
from .weights import Weights


class Probes(Climbs):
    """A base of ``Passes``: the part of ``methods.step.Step`` that looks at the loss elsewhere.

    Args:
        weights: where weights and gradients are.
        scope: how gradients are reduced over ranks.
        course: what the steps are part of.
        noise: makes the random bits for a use within these passes, given its number.
        loss_scale: returns the factor by which the closures scale their loss, or None.
        checks_overflow: whether every ascent looks first if its gradient is finite.
        loss: the loss of the first pass.
        habits: what the closures were seen to do.
        targets: ids of the parameters that are perturbed; None for all.
    """

    def __init__(
        self,
        weights: Weights,
        scope: Scope,
        course: Course,
        noise: Callable[[int], rounding.Noise],
        loss_scale: Callable[[], Tensor] | None,
        checks_overflow: bool,
        loss: Tensor,
        habits: Habits,
        targets: set[int] | None = None,
    ) -> None:
        super().__init__(weights, scope, course, noise, loss_scale, checks_overflow, loss, targets)
        self.habits = habits
        self.micro_batches: list[MicroBatch] = []
        self.bystanders: list[tuple[Any, Tensor | None]] = []
        self.skip_backward: SkipBackward | None = None
        self.maximizes = maximizes(weights.optimizer)

    def _pass(self, reduce: bool, micro_batches: list[MicroBatch] | None = None) -> Tensor:
        """One more pass over micro-batches, all of them if none are given."""
        raise NotImplementedError

    def probe(self, terms: list[tuple[float, Vector]]) -> Tensor:
        self._measure_displacement()
        vectors.copy_(self.live, self.saved)
        noise = self.noise(0)  # the same for all probes, which are compared
        for factor, vector in terms:
            rounding.move_(self.live, self.live, self.folded(vector), self.coarse, noise, factor)
        self._weights_changed()
        gradients = EarlierGradients(self.trainable)  # which a closure may read or set to zero
        loss = None if self.habits.need_derivatives else self._forward_only()
        if loss is None:
            loss = self._with_derivatives()
        gradients.put_back()
        return -loss if self.maximizes else loss

    def _forward_only(self) -> Tensor | None:
        """The loss of a pass without gradients; None if it turns out to be made from derivatives."""
        mode = self.skip_backward = SkipBackward(self.trainable, ignored=self.weights.read_by_others())
        torch.set_grad_enabled(False)  # restore() turns it on again, wherever an interrupt comes
        loss: Tensor | None = None
        try:
            loss = run_under(mode, lambda: self._pass(reduce=True))
        except Exception as error:
            # torch's own words where a tensor was to have a gradient: a hook on it, retain_grad(), an extension.
            mode.incomplete |= isinstance(error, RuntimeError) and "grad" in str(error)
            if not mode.incomplete:
                raise
        self._end_probe()
        self.habits.need_derivatives |= mode.incomplete
        return None if mode.incomplete or loss is None else self._descended(loss, mode)

    def _descended(self, returned: Tensor, mode: SkipBackward) -> Tensor:
        """What is descended: the sum of all that was differentiated, of which a closure may return a part."""
        if self.habits.return_the_loss or mode.chained:
            return returned
        if len(mode.losses) <= len(self.micro_batches) and not (self.habits.are_whole_steps and mode.losses):
            return returned
        return torch.stack([value.to(returned) for value in mode.losses]).sum() / self.loss_scale

    def _with_derivatives(self) -> Tensor:
        """The loss of a whole pass, whose gradients are dropped."""
        mode = self.skip_backward = SkipBackward(self.trainable, False, self.weights.read_by_others())
        loss = run_under(mode, lambda: self._pass(reduce=False))
        self._end_probe()
        if self.habits.are_whole_steps:
            loss = self._descended(loss, mode)
        for parameter in self.trainable + [p for p, _ in self.bystanders]:
            parameter.grad = None
        self.weights.before_replay()
        return loss

    def _end_probe(self) -> None:
        if self.skip_backward is not None:
            self.skip_backward = None
            torch.set_grad_enabled(True)
