"""The part of an update that is added to the weights once the base optimizer has stepped (WSAM but for coupled)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import vectors
from .edits import CANNOT_FOLLOW, LARGEST, factor_of_all, follow_, follow_one_factor_, is_no_multiple
from .preconditioner import precondition_
from .weights import Weights


class AfterStep:
    """``w <- w - lr * weight * vector`` after ``optimizer.step()``, changed between as the gradient was.

    Clipping, unscaling, masks and other factors on the gradient count for the vector too, element by element; a
    parameter whose gradient was set to None is left alone.

    Args:
        terms: the vector, as one local tensor for each parameter; spent by ``descend``.
        weight: the factor beside the learning rate.
        scratch: for every parameter a tensor of its size, not overlapping; holds the gradient, then, if measured, the
            old weights.
        weights: where the weights are. DeepSpeed calls the optimizer's ``step`` several times, each for some of them.
        preconditioned: divide the vector by what the optimizer divides its step by.
        loss_scale: the factor on the gradient, which may be taken off before the step.
        at_once: whether a change that cannot be followed is refused before the step, which waits for the device.
        large: squares of the vector, or of the gradient, may overflow.
        measures: whether ``descend`` is to return the size of its step, which reads all weights.
        detects_factor: whether to find out if the gradient was multiplied by one number, if it was changed at all.
            Only on an accelerator, and where weights are not spread over ranks.
        assumes_factor: whether to take it that it was, in a step that measures nothing: the term is left out where it
            was not.

    Attributes:
        not_one_factor: whether it was not, 0-dim, on the device; None in a step that does not look.

    A non-finite vector makes the gradient non-finite too, so that a GradScaler skips the step.
    """

    def __init__(
        self,
        terms: dict[nn.Parameter, Tensor],
        weight: float,
        scratch: dict[nn.Parameter, Tensor],
        weights: Weights,
        *,
        preconditioned: bool = False,
        loss_scale: Tensor | float = 1.0,
        at_once: bool = True,
        large: bool = False,
        measures: bool = True,
        detects_factor: bool = False,
        assumes_factor: bool = False,
    ) -> None:
        self.terms = terms
        self.weight = weight
        self.scratch = scratch
        self.weights = weights
        self.preconditioned = preconditioned
        self.loss_scale = loss_scale
        self.at_once = at_once
        self.large = large
        self.measures = measures
        params = list(terms)
        spread = any(vectors.is_spread(owner) for owner in weights.owners(params))
        self.reads = at_once and not spread
        self.detects_factor = detects_factor and not at_once and not spread
        self.assumes_factor = assumes_factor and self.detects_factor and not measures
        self.waiting = weights.stepped_together(params)
        self.params: list[nn.Parameter] = []
        self.factor: Tensor | float = 1.0
        self.lost: Tensor | bool = False
        self.not_one_factor: Tensor | None = None
        self.steps: list[tuple[Tensor, Tensor]] = []
        size = self._norm(list(terms.values()), params)
        gradients = vectors.gradients(params)
        next((g for g in gradients if g.numel()), size).add_(size * 0)  # a rank's shard may be empty
        vectors.copy_([scratch[p] for p in params], gradients)

    @property
    def is_done(self) -> bool:
        """Whether the optimizer has stepped for all of the weights."""
        return not self.waiting

    def _norm(self, vector: vectors.Vector, params: list[nn.Parameter]) -> Tensor:
        owners = self.weights.owners(params)
        norm = vectors.norm(vector, owners)
        return torch.where(norm.isfinite(), norm, vectors.norm_of_large(vector, owners)) if self.large else norm

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to step: change the vector as the gradient was changed, and note the weights.

        Raises:
            RuntimeError: the change cannot be followed.
        """
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales within its step
        self._follow_edits(self.loss_scale if scale is None else 1.0)
        if scale is not None:
            vectors.scale_([self.terms[p] for p in self.params], 1 / scale)
        if self.measures:
            vectors.copy_([self.scratch[p] for p in self.params], vectors.local(self.params))

    def withdrawn(self) -> dict[nn.Parameter, Tensor]:
        """The vector, changed as the gradient was, for the term of a further backward pass before the step."""
        terms: dict[nn.Parameter, Tensor] = {}
        while self.waiting:
            self._follow_edits(self.loss_scale)
            terms |= {p: self.terms[p] for p in self.params}
        return terms

    def _follow_edits(self, unscaled_by: Tensor | float) -> None:
        self.params = [p for p in self.waiting.pop(0) if p.grad is not None]
        if not self.params:
            return
        terms, before = [self.terms[p] for p in self.params], [self.scratch[p] for p in self.params]
        now = vectors.gradients(self.params)
        if self.reads and (factor := factor_of_all(before, now)) is not None:
            if factor != 1.0:
                vectors.scale_(terms, factor)
            self.factor = factor
            return

        def norm_of(vector: vectors.Vector) -> Tensor:
            return self._norm(vector, self.params)

        if self.assumes_factor:
            self.factor, not_one_factor = follow_one_factor_(terms, before, now, norm_of, self.factor)
            self._note(not_one_factor)
            return
        self.factor, lost = follow_(terms, before, now, norm_of, self.factor, limit=LARGEST / unscaled_by)
        if self.detects_factor:
            self._note(is_no_multiple(before, now, self.factor, norm_of(now)))
        self.lost = lost | self.lost
        if self.at_once and lost:
            raise RuntimeError(CANNOT_FOLLOW)

    def _note(self, not_one_factor: Tensor) -> None:
        self.not_one_factor = not_one_factor if self.not_one_factor is None else self.not_one_factor | not_one_factor

    def descend(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Add the term.

        Returns:
            Its size over that of the base optimizer's step; None if it is not measured, or that step was skipped.
        """
        found_inf = getattr(optimizer, "found_inf", None)  # a fused optimizer is called and skips inside
        if not self.params or (found_inf is not None and found_inf.item()):
            return None
        live = dict(zip(self.params, vectors.local(self.params), strict=True))
        before = [self.scratch[p] for p in self.params] if self.measures else []
        if self.measures:
            vectors.add_(before, list(live.values()), -1.0)
        if self.preconditioned:
            precondition_(optimizer, self.params, [self.terms[p] for p in self.params])
        for group in optimizer.param_groups:
            members = [p for p in group["params"] if p in live]
            terms, factor = [self.terms[p] for p in members], group["lr"] * self.weight
            vectors.add_spending_([live[p] for p in members], terms, -factor)
            # Scaled afterwards, where that has not spent it: a step that is measured moves as any other, bit for bit.
            if self.measures and not (isinstance(factor, Tensor) and not vectors.is_on_host(factor)):
                vectors.scale_(terms, factor)
        if not self.measures:
            return None
        base_step = self._norm(before, self.params)
        self.steps.append((self._norm([self.terms[p] for p in self.params], self.params), base_step))
        if len(self.steps) == 1:
            return self.steps[0][0] / base_step
        sharpness_steps, base_steps = (
            torch.linalg.vector_norm(torch.stack(norms)) for norms in zip(*self.steps, strict=True)
        )
        return sharpness_steps / base_steps
