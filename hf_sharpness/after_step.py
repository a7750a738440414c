"""The part of an update that is added to the weights once the base optimizer has stepped (decoupled WSAM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import vectors


class AfterStep:
    """``w <- w - lr * weight * vector`` after ``optimizer.step()``, clipped and unscaled as the gradient was.

    Args:
        terms: the vector, as one local tensor for each parameter; spent by ``descend``.
        weight: the factor beside the learning rate.
        before: the weights before the optimizer's step, local; spent by ``descend``.

    A non-finite vector makes the gradient non-finite too, so that a GradScaler skips the step.
    """

    def __init__(self, terms: dict[nn.Parameter, Tensor], weight: float, before: dict[nn.Parameter, Tensor]) -> None:
        self.terms = terms
        self.weight = weight
        self.before = before
        self.params = list(terms)
        self.gradient_norm = self._gradient_norm()
        self.clipping: Tensor | float = 1.0
        size = vectors.norm(list(terms.values()), self.params)
        gradients = vectors.local([p.grad for p in self.params])
        next((g for g in gradients if g.numel()), size).add_(size * 0)  # a rank's shard may be empty

    def _gradient_norm(self) -> Tensor:
        return vectors.norm(vectors.local([p.grad for p in self.params]), self.params)

    def measure_clipping(self, optimizer: torch.optim.Optimizer) -> None:
        """Find the factor by which clipping and unscaling have changed the gradient since the last backward."""
        before, now = self.gradient_norm, self._gradient_norm()
        self.clipping = torch.where(before > 0, now / before, torch.ones_like(before))
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
        base_step = vectors.norm(before, self.params)
        for group in optimizer.param_groups:
            members = [p for p in group["params"] if p in self.terms]
            terms = [self.terms[p] for p in members]
            vectors.scale_(terms, self.clipping * group["lr"] * self.weight)
            vectors.add_([live[p] for p in members], terms, -1.0)
        sharpness_step = vectors.norm([self.terms[p] for p in self.params], self.params)
        return sharpness_step / base_step
