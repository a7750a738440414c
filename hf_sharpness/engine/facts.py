"""What a method may ask for within a step besides moves and passes: products of vectors, and where the training is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import vectors
from ..vectors import Vector
from .course import Course
from .optimizers import optimizer_state
from .overlap import Memory
from .parallel import mean_over_ranks
from .progress import learning_rate, peak_learning_rate
from .weights import Weights


class Facts:
    """A base of ``Passes``: the part of ``methods.step.Step`` that leaves weights and gradients alone.

    Args:
        weights: where weights and gradients are.
        course: what the step is part of.
        loss_scale: returns the factor by which the closures scale their loss, or None.
        targets: ids of the parameters that are perturbed; None for all.

    Attributes:
        params: the parameters that have had a gradient in this step, those that are perturbed first.
        moved: these.
    """

    def __init__(
        self,
        weights: Weights,
        course: Course,
        loss_scale: Callable[[], Tensor] | None,
        targets: set[int] | None = None,
    ) -> None:
        self.weights = weights
        self.course = course
        self.scale_of_loss = loss_scale
        self.trainable = weights.parameters()
        self.memory = Memory(vectors.local(self.trainable))
        self.targets = targets
        self.params: list[nn.Parameter] = []
        self.moved: list[nn.Parameter] = []
        self.owners: Sequence[Any] = []  # of the memory in use
        self.large = False
        self.live: Vector = []

    def pad(self, vector: Vector) -> Vector:
        return vector + [torch.zeros_like(t) for t in vectors.local(self.params[len(vector) :])]

    def perturbed(self, vector: Vector) -> Vector:
        return vector[: len(self.moved)]

    def folded(self, vector: Vector) -> Vector:
        """What a vector has for the memory of the weights that are perturbed."""
        return self.memory.folded(self.perturbed(vector))

    def norm(self, vector: Vector) -> Tensor:
        return self._norm(self.folded(vector))

    def norm_of_all(self, vector: Vector) -> Tensor:
        """The norm over all parameters, perturbed or not."""
        if len(self.moved) == len(self.params):
            return self.norm(vector)
        return vectors.norm(vector, self.weights.owners(self.params[: len(vector)]))

    def _norm(self, folded: Vector) -> Tensor:
        owners = self.owners[: len(folded)]
        norm = vectors.norm(folded, owners)
        return torch.where(norm.isfinite(), norm, vectors.norm_of_large(folded, owners)) if self.large else norm

    def dot(self, a: Vector, b: Vector) -> Tensor:
        a, b = self.folded(a), self.folded(b)
        both = min(len(a), len(b))  # what is missing at the end of one is zero
        return vectors.dot(a[:both], b[:both], self.owners[:both])

    def random_direction(self) -> Vector:
        return self.course.directions.draw(self.number, self.moved, self.memory) if self.moved else []

    def optimizer_state(self, key: str) -> Vector | None:
        return optimizer_state(self.weights.optimizer, self.params, key)

    def has_kept(self, name: str) -> bool:
        return self.course.kept.has(name)

    def kept(self, name: str) -> Vector | None:
        return self.course.kept.get(name, self.params, self.loss_scale)

    def keep(self, name: str, vector: Vector) -> None:
        self.course.kept.put(name, self.params, self.pad(vector), self.loss_scale)

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        return mean_over_ranks(values, self.weights.rank_groups())

    @property
    def number(self) -> int:
        return self.course.progress.steps_made

    @property
    def progress(self) -> float:
        return self.course.progress.fraction()

    @property
    def learning_rate(self) -> float | Tensor:
        return learning_rate(self.weights.optimizer)

    @property
    def peak_learning_rate(self) -> float | Tensor:
        return peak_learning_rate(self.weights.optimizer)

    @property
    def loss_scale(self) -> float | Tensor:
        return self.scale_of_loss() if self.scale_of_loss is not None else 1.0
