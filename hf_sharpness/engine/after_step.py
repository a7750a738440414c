"""The part of an update that is added to the weights once the base optimizer has stepped (decoupled WSAM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import vectors
from .weights import Weights


class AfterStep:
    """``w <- w - lr * weight * vector`` after ``optimizer.step()``, clipped and unscaled as the gradient was.

    Args:
        terms: the vector, as one local tensor for each parameter; spent by ``descend``.
        weight: the factor beside the learning rate.
        before: the weights before the optimizer's step, local; spent by ``descend``.
        weights: where the weights are. DeepSpeed calls the optimizer's ``step`` several times, each for some of them.

    A non-finite vector makes the gradient non-finite too, so that a GradScaler skips the step.
    """

    def __init__(
        self,
        terms: dict[nn.Parameter, Tensor],
        weight: float,
        before: dict[nn.Parameter, Tensor],
        weights: Weights,
    ) -> None:
        self.terms = terms
        self.weight = weight
        self.before = before
        self.weights = weights
        params = list(terms)
        self.waiting = [(group, self._gradient_norm(group)) for group in weights.stepped_together(params)]
        self.params: list[nn.Parameter] = []
        self.clipping: Tensor | float = 1.0
        self.steps: list[tuple[Tensor, Tensor]] = []
        size = self._norm(list(terms.values()), params)
        gradients = vectors.local([p.grad for p in params])
        next((g for g in gradients if g.numel()), size).add_(size * 0)  # a rank's shard may be empty

    @property
    def is_done(self) -> bool:
        """Whether the optimizer has stepped for all of the weights."""
        return not self.waiting

    def _norm(self, vector: vectors.Vector, params: list[nn.Parameter]) -> Tensor:
        return vectors.norm(vector, self.weights.owners(params))

    def _gradient_norm(self, params: list[nn.Parameter]) -> Tensor:
        return self._norm(vectors.local([p.grad for p in params]), params)

    def measure_clipping(self, optimizer: torch.optim.Optimizer) -> None:
        """Find the factor by which clipping and unscaling have changed the gradient since the last backward."""
        self.params, before = self.waiting.pop(0)
        now = self._gradient_norm(self.params)
        self.clipping = torch.where(before > 0, now / before, torch.ones_like(before) * self.clipping)
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales within its step
        if scale is not None:
            self.clipping = self.clipping / scale

    def descend(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Add the term; returns its size over that of the base optimizer's step, or None if that step was skipped."""
        found_inf = getattr(optimizer, "found_inf", None)  # a fused optimizer is called and skips inside
        if found_inf is not None and found_inf.item():
            return None
        live = dict(zip(self.params, vectors.local(self.params), strict=True))
        before = [self.before[p] for p in self.params]
        vectors.add_(before, list(live.values()), -1.0)
        base_step = self._norm(before, self.params)
        for group in optimizer.param_groups:
            members = [p for p in group["params"] if p in live]
            terms = [self.terms[p] for p in members]
            vectors.scale_(terms, self.clipping * group["lr"] * self.weight)
            vectors.add_([live[p] for p in members], terms, -1.0)
        self.steps.append((self._norm([self.terms[p] for p in self.params], self.params), base_step))
        if len(self.steps) == 1:
            return self.steps[0][0] / base_step
        sharpness_steps, base_steps = (
            torch.linalg.vector_norm(torch.stack(norms)) for norms in zip(*self.steps, strict=True)
        )
        return sharpness_steps / base_steps
