"""Moves the weights along a vector, and takes gradients out of p.grad and puts them there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import vectors
from ..vectors import Vector
from . import rounding
from .course import Course
from .facts import Facts
from .scopes import Scope
from .weight_copies import forget_weight_copies
from .weights import Weights, placed_gradients


class NonFiniteAscent(Exception):
    """The gradient to climb is not finite: the weights stay where they are and the gradient is left in p.grad."""


class Climbs(Facts):
    """A base of ``Passes``: the part of ``methods.step.Step`` that moves weights and gradients, but makes no pass.

    Args:
        weights: where weights and gradients are.
        scope: how gradients are reduced over ranks.
        course: what the steps are part of.
        noise: makes the random bits for a use within these passes, given its number.
        loss_scale: returns the factor by which the closures scale their loss, or None.
        checks_overflow: whether every ascent looks first if its gradient is finite.
        loss: the loss of the first pass.
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
        targets: set[int] | None = None,
    ) -> None:
        super().__init__(weights, course, loss_scale, targets)
        self.scope = scope
        self.noise = noise
        self.checks_overflow = checks_overflow
        self.metrics: dict[str, Tensor | float] = {"loss": loss}
        self.coarse: list[bool] = []
        self.climbs = 0
        self.saved: Vector = []
        self.copies: Vector = []
        self.saved_copies: Vector = []
        self.displaced = False

    def climb(self, length: float | Tensor, adaptive: bool = False, returned: bool = True) -> Vector:
        gradient = self.take_gradient()
        size = self._ascent_norm(gradient)
        if not returned and self._climbed_at_once(gradient, size, length, adaptive):
            return []
        return self._climb(gradient, size, length, adaptive)

    def climb_along(self, direction: Vector, length: float | Tensor, adaptive: bool = False) -> Vector:
        if "ascent_grad_norm" not in self.metrics and any(p.grad is not None for p in self.params):
            self._ascent_norm(self.gradient())
        direction = self.pad(direction)
        size = self._checked_norm(direction)
        if size is None:
            if all(p.grad is None for p in self.params):
                self.put_gradient(direction)
            raise NonFiniteAscent
        return self._climb(direction, size, length, adaptive)

    def _climb(self, direction: Vector, size: Tensor, length: float | Tensor, adaptive: bool) -> Vector:
        self._save()
        direction = self.perturbed(direction)
        weights = self.memory.views(self.saved) if adaptive else None
        vectors.displacement_(direction, length, size, self.norm, weights)
        self._move(self.live, self.memory.folded(direction))
        self._weights_changed()
        return direction

    def _climbed_at_once(self, direction: Vector, size: Tensor, length: float | Tensor, adaptive: bool) -> bool:
        """Move the weights without making the displacement, where its factor can be read; returns whether it could."""
        factor = length * vectors.reciprocal(size)
        if adaptive or not vectors.is_on_host(factor):
            return False
        self._save()
        self._move(self.live, self.folded(direction), float(factor))
        self._weights_changed()
        return True

    def climb_keeping_gradient(self, length: float | Tensor, adaptive: bool = False) -> None:
        gradient = self.gradient()
        gradient_norm = self._ascent_norm(gradient)
        if self._climbed_at_once(gradient, gradient_norm, length, adaptive):
            return
        self._save()
        vectors.copy_(self.live, self.folded(gradient))
        vectors.displacement_(self.live, length, gradient_norm, self._norm, self.saved if adaptive else None)
        self._move(self.saved, self.live)
        self._weights_changed()

    def _move(self, start: Vector, step: Vector, factor: float = 1.0) -> None:
        """The live weights <- start + factor * step, one of which they hold; the step only if the factor is 1."""
        self.climbs += 1
        rounding.move_(self.live, start, step, self.coarse, self.noise(self.climbs), factor)

    def _ascent_norm(self, gradient: Vector) -> Tensor:
        gradient_norm = self._checked_norm(gradient)
        if gradient_norm is None:
            self.put_gradient(gradient)
            raise NonFiniteAscent
        if "ascent_grad_norm" not in self.metrics:
            self.metrics["ascent_grad_norm"] = gradient_norm / self.loss_scale
        return gradient_norm

    def _checked_norm(self, vector: Vector) -> Tensor | None:
        """The norm of a vector to climb along; None if it is looked at and not finite."""
        size = self.norm(vector)
        if self.checks_overflow and not size.isfinite():
            self.large = True
            size = self.norm(vector)
            if not size.isfinite():
                return None
        return size

    def _save(self) -> None:
        if not self.saved:
            copies = self.weights.copies()
            self.saved_copies = vectors.clone(copies)
            self.copies = copies
            self.saved = vectors.clone(self.live)

    def _weights_changed(self) -> None:
        """Drop every copy of the old weights: what torch keeps of them, and what FSDP2 gathered and did not free."""
        forget_weight_copies()
        self.weights.weights_changed()

    def _measure_displacement(self) -> None:
        """Note how far the weights really moved (rounding included); spends the live weights."""
        if self.saved and self.course.measures and not self.displaced:
            self.displaced = True
            vectors.add_(self.live, self.saved, -1.0)
            self.metrics["perturbation_norm"] = self._norm(self.live)

    def angle(self, a: Vector, b: Vector, a_norm: Tensor, b_norm: Tensor) -> Tensor:
        self._measure_displacement()
        a, b = self.folded(a), self.folded(b)
        return vectors.angle(a, b, a_norm, b_norm, self.live, self.owners)

    # The gradient.

    def gradient(self) -> Vector:
        for parameter in self.params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return placed_gradients(self.params)

    def take_gradient(self) -> Vector:
        gradient = self.gradient()
        if self.scope.gradients_are_views:
            gradient = vectors.clone(gradient)
        for parameter in self.params:
            parameter.grad = None
        return gradient

    def put_gradient(self, gradient: Vector) -> None:
        for parameter, tensor in zip(self.params, gradient, strict=True):
            parameter.grad = vectors.shaped_like(tensor, parameter)
