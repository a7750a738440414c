"""The term that a method adds to the weights after a step: collected in the passes, added in the optimizer's hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import vectors
from .after_step import AfterStep
from .edits import CANNOT_FOLLOW
from .one_factor import LateFlag, OneFactor
from .optimizers import REPLACED, base_optimizer
from .passes import Passes
from .scopes import Scope
from .weights import Weights


class Term:
    """Holds the term of the step that is being made, then of the one that the base optimizer is about to take.

    Args:
        weights: where weights and gradients are.
        scope: how gradients are reduced over ranks.
        loss_scale: returns the factor by which the closures scale their loss, or None.
        on_cpu: whether reading a tensor's value on the host waits for nothing.
        report: is told the size of the term's step over that of the base optimizer's, once both are made.

    Attributes:
        vector: the term of the step that is being made, as one local tensor for each parameter.
    """

    def __init__(
        self,
        weights: Weights,
        scope: Scope,
        loss_scale: Callable[[], Tensor] | None,
        on_cpu: Callable[[], bool],
        report: Callable[[Tensor], None],
    ) -> None:
        self.weights = weights
        self.scope = scope
        self.loss_scale = loss_scale
        self.on_cpu = on_cpu
        self.report = report
        self.pending: AfterStep | None = None
        self.lost: LateFlag | None = None
        self.one_factor = OneFactor()
        self.hooks: list[RemovableHandle] = []
        self.forget()

    def attach(self, weights: Weights) -> None:
        """Add the term in the hooks of the base optimizer of these weights, and of no other."""
        self.weights = weights
        self._go_between()

    def _go_between(self) -> None:
        """Hook in after all others before a step, which may change the gradient, and before all others after it."""
        self.detach()
        optimizer: Any = self.weights.optimizer
        before = optimizer.register_step_pre_hook(self._before_step)
        after = optimizer.register_step_post_hook(self._after_step)
        self.hooks = [before, after]
        # Private in torch: nothing public puts a hook first. An average of the weights is to see them with the term.
        optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self.hooks:
            handle.remove()
        self.hooks = []

    def close(self) -> None:
        """No step follows."""
        self.one_factor.end()
        self.detach()

    def forget(self) -> None:
        """Drop what has been collected for the step that is being made."""
        self.vector: dict[nn.Parameter, Tensor] = {}
        self.weight = 1.0
        self.preconditioned = False
        self.measures = False
        self.earlier: dict[nn.Parameter, Tensor] = {}
        self.scratch: dict[nn.Parameter, Tensor] = {}
        self.large = False

    def drop(self) -> None:
        """Forget the term that waits for an optimizer step which did not happen."""
        self.pending = None

    def was_left_out(self, optimizer: torch.optim.Optimizer) -> None:
        """The same, where that step was this optimizer's to make.

        Raises:
            RuntimeError: it is not the one that the term was made for, which was replaced in between.
        """
        waits, self.pending = self.pending is not None, None
        if waits and self.weights.gradients_are_visible and base_optimizer(optimizer) is not self.weights.optimizer:
            raise RuntimeError(REPLACED)

    def begin(self) -> None:
        """A step begins. Where the optimizer has not stepped since the last one, that one's term counts as well.

        Raises:
            RuntimeError: the gradient of a step was changed in a way that its term could not follow.
        """
        if self.lost is not None and self.lost.is_set:
            raise RuntimeError(CANNOT_FOLLOW)
        pending, self.pending = self.pending, None
        if pending is not None:
            self.earlier, self.large = pending.withdrawn(), pending.large
            self._note_factor(pending)
            self.weight, self.preconditioned = pending.weight, pending.preconditioned

    def collect(self, passes: Passes) -> None:
        """Add up the terms of the method's runs within a step."""
        if passes.term is None:
            return
        vector, weight, self.preconditioned = passes.term
        if self.earlier and weight != self.weight:
            vectors.scale_(list(self.earlier.values()), self.weight / weight)
        self.weight, self.measures = weight, passes.course.measures
        self.large |= passes.large
        _add(self.vector, dict(zip(passes.params, passes.pad(vector), strict=True)))
        # The saved weights have served: their memory is used again.
        self.scratch = {} if passes.memory.flat else dict(zip(passes.moved, passes.saved, strict=True))

    def finish(self) -> None:
        """The gradient for the base optimizer is in p.grad: have the term added once it has stepped."""
        _add(self.vector, self.scope.averaged(self.earlier))
        if self.vector:
            missing = [p for p in self.vector if p not in self.scratch]
            self.scratch |= dict(zip(missing, vectors.clone(vectors.local(missing)), strict=True))
            self._go_between()
            self.pending = AfterStep(
                self.vector,
                self.weight,
                self.scratch,
                self.weights,
                preconditioned=self.preconditioned,
                loss_scale=1.0 if self.loss_scale is None else self.loss_scale(),
                at_once=self.on_cpu(),
                large=self.large,
                measures=self.measures,
                assumes_factor=self.one_factor.is_expected(),
                detects_factor=not self.one_factor.was_not_one_factor,
            )
        self.forget()

    def _note_factor(self, pending: AfterStep) -> None:
        if pending.not_one_factor is not None:
            self.one_factor.note(pending.not_one_factor, pending.assumes_factor)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.pending is not None and self.pending.is_done:  # the step that it was for has failed
            self.pending = None
        if self.pending is not None:
            self.pending.prepare(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        pending = self.pending
        if pending is None:
            return
        ratio = pending.descend(optimizer)
        if ratio is not None:
            self.report(ratio)
        if pending.is_done:
            self.pending = None
            self.lost = LateFlag(pending.lost) if isinstance(pending.lost, Tensor) else None
            self._note_factor(pending)


def _add(vector: dict[nn.Parameter, Tensor], other: dict[nn.Parameter, Tensor]) -> None:
    """vector <- vector + other, by parameter; spends both."""
    for parameter, tensor in other.items():
        present = vector.get(parameter)
        vector[parameter] = tensor if present is None else present.add_(tensor)
