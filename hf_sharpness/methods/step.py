"""What a method may do within one optimizer step: climb, replay, probe, and the arithmetic on gradients for it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..vectors import Vector


class Step(Protocol):
    """The passes of one optimizer step, as the engine offers them to a method.

    A method begins with the gradient ``g`` of the effective batch at the weights ``w`` in ``p.grad``, moves the
    weights, runs further passes, and ends with the gradient for the base optimizer in ``p.grad``. The engine restores
    weights, buffers and random state afterwards, whatever happens, so a method never does.
    """

    metrics: dict[str, Tensor | float]

    def climb(self, length: float, adaptive: bool = False) -> Vector:
        """w <- w + displacement of that length up p.grad (``adaptive``: in ASAM's metric at w_0).

        Spends p.grad and returns the displacement, which the caller owns.
        """

    def climb_keeping_gradient(self, length: float, adaptive: bool = False) -> None:
        """The same, but p.grad stays as it is."""

    def replay(self, accumulate: bool = False) -> None:
        """Forward and backward of the same batch at the current weights; fills p.grad or, on request, adds to it."""

    def probe(self, terms: list[tuple[float, Vector]]) -> Tensor:
        """Loss of the same batch at w_0 + sum(factor * vector), forward only. No replay may follow."""

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks that share the effective batch."""

    def gradient(self) -> Vector:
        """p.grad of every perturbed parameter (zeros where a pass left none), to be changed in place."""

    def take_gradient(self) -> Vector:
        """The same, removed from p.grad: the caller owns it."""

    def put_gradient(self, gradient: Vector) -> None:
        """p.grad <- gradient."""

    def pad(self, vector: Vector) -> Vector:
        """The vector, with zeros added for parameters that got their first gradient in a later pass."""

    def norm(self, vector: Vector) -> Tensor:
        """Global L2 norm of a vector over all parameters and shards."""

    def angle(self, a: Vector, b: Vector, a_norm: Tensor, b_norm: Tensor) -> Tensor:
        """The angle between two vectors. No replay may follow."""

    def descend_after_step(self, vector: Vector, weight: float) -> None:
        """Once the base optimizer has stepped: w <- w - lr * weight * vector, clipped and unscaled as p.grad was."""
