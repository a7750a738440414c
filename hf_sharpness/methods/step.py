"""What a method may do within one optimizer step: climb, replay, probe, and the arithmetic on gradients for it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..vectors import Vector


class Step(Protocol):
    """The passes of one optimizer step, as the engine offers them to a method.

    A method begins with the gradient ``g`` of the effective batch at the weights ``w_0`` in ``p.grad``, moves the
    weights, runs further passes, and ends with the gradient for the base optimizer in ``p.grad``. The engine restores
    weights, buffers and random state afterwards, whatever happens, so a method never does.

    A ``Vector`` is a list with one local tensor for each parameter that has had a gradient in this step (its shard,
    where weights are sharded), always in the same order; ``hf_sharpness.vectors`` calculates with them in place. One
    that was made before a replay may be shorter than one made after it: ``pad`` it. Norms and dot products are those
    of the whole model, the same number on every rank, as 0-dim tensors on the device; a length may be one too, so
    that nothing waits for the device. Gradients carry the loss scale of a ``GradScaler`` (``loss_scale``).

    Attributes:
        metrics: what the step measures, by name. A method adds what its class lists in ``metrics``.
    """

    metrics: dict[str, Tensor | float]

    # Moving the weights.

    def climb(self, length: float | Tensor, adaptive: bool = False, returned: bool = True) -> Vector:
        """Move the weights up p.grad, which is spent.

        Args:
            length: how far, in the units of the weights (with ``adaptive`` in ASAM's metric).
            adaptive: climb ``T^2 g / ||T g||`` with ``T = |w_0|`` (ASAM, arXiv 2102.11600, eq. 10) instead of
                ``g / ||g||``.
            returned: False where the displacement is of no use: it is not made where that saves work.

        Returns:
            The displacement, which the caller owns.
        """

    def climb_keeping_gradient(self, length: float | Tensor, adaptive: bool = False) -> None:
        """The same, but p.grad stays as it is."""

    def climb_along(self, direction: Vector, length: float | Tensor, adaptive: bool = False) -> Vector:
        """Move the weights along any vector, which is spent; p.grad stays as it is.

        Args:
            direction: any length but 0 (a zero vector moves nothing), any loss scale.
            length: how far; a negative one moves against the direction.
            adaptive: as for ``climb``.

        Returns:
            The displacement: ``direction``'s own tensors, overwritten.
        """

    def perturbed(self, vector: Vector) -> Vector:
        """The entries of a vector for the parameters that are perturbed: all, unless ``target_modules`` names some.

        They are the first ones. A displacement has no others; ``norm``, ``dot`` and ``angle`` look at no others.
        """

    # Passes over the batch.

    @property
    def replays(self) -> int:
        """How many replays the method announced for this step (``Method.replays_of``); it must make as many."""

    def replay(self, accumulate: bool = False) -> None:
        """Forward and backward of the same batch at the current weights.

        Args:
            accumulate: add the gradient to p.grad; by default it takes the place of what is there.
        """

    def probe(self, terms: list[tuple[float, Vector]]) -> Tensor:
        """Loss of the same batch at ``w_0 + sum(factor * vector)``, forward only. No replay may follow.

        Returns:
            This rank's loss, a 0-dim tensor without the loss scale's factor if the closure returns it so.
        """

    # The gradient, and vectors like it.

    def gradient(self) -> Vector:
        """p.grad of every perturbed parameter (zeros where a pass left none): p.grad itself, changed in place."""

    def take_gradient(self) -> Vector:
        """The same, removed from p.grad: the caller owns it."""

    def put_gradient(self, gradient: Vector) -> None:
        """p.grad <- gradient, which is handed over."""

    def pad(self, vector: Vector) -> Vector:
        """The vector, with zeros added for parameters that got their first gradient in a later pass."""

    def norm(self, vector: Vector) -> Tensor:
        """L2 norm of a vector over all parameters and shards."""

    def dot(self, a: Vector, b: Vector) -> Tensor:
        """Dot product of two vectors over all parameters and shards, accumulated in fp32 or wider."""

    def angle(self, a: Vector, b: Vector, a_norm: Tensor, b_norm: Tensor) -> Tensor:
        """The angle between two vectors of these norms, in radians, 0 to pi. No replay may follow."""

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks that share the effective batch."""

    def descend_after_step(self, vector: Vector, weight: float, preconditioned: bool = False) -> None:
        """Once the base optimizer has stepped: ``w <- w - lr * weight * vector``, clipped and unscaled as p.grad was.

        ``Method.adds_after_step`` must say so.

        Args:
            vector: handed over.
            weight: the factor beside the learning rate.
            preconditioned: divide the vector by what the base optimizer divides its step by (Adam:
                ``sqrt(v_hat) + eps`` after this step). ``Method.preconditions_term`` must say so.
        """

    # The training around the step.

    @property
    def number(self) -> int:
        """How many optimizer steps came before this one; a resumed training counts on."""

    @property
    def progress(self) -> float:
        """The part of the training that came before this step, from 0 to 1: ``number`` over the number of all steps.

        Raises:
            ValueError: the number of all steps is not known (a plain loop without ``total_steps``).
        """

    @property
    def learning_rate(self) -> float | Tensor:
        """The learning rate of this step (of the base optimizer's first group; a 0-dim tensor where that holds one).

        Raises:
            ValueError: the base optimizer has none.
        """

    @property
    def peak_learning_rate(self) -> float | Tensor:
        """The one that a schedule scales, which warm-up ends at; without a schedule ``learning_rate``.

        Raises:
            ValueError: the base optimizer has none.
        """

    def optimizer_state(self, key: str) -> Vector | None:
        """What the base optimizer holds for each parameter, as it stands before this step.

        Args:
            key: ``momentum`` (SGD's buffer, Adam's first moment), ``second_moment`` (Adam's, RMSprop's), neither
                corrected for bias; or the optimizer's own name of a state, such as ``exp_avg``.

        Returns:
            A copy, which the caller owns, without a loss scale (zeros for a parameter that has none yet); None before
            the optimizer's first step.

        Raises:
            ValueError: the base optimizer holds nothing of the kind, or not one number for each weight.
        """

    def random_direction(self) -> Vector:
        """Independent standard normal numbers, one for each weight; no loss scale.

        Drawn from a generator of their own: another call, step or micro-batch that runs alone gets others, and a
        resumed training the same. Ranks that climb together get the same vector, or their shards of it.
        """

    # What outlives the step.

    def keep(self, name: str, vector: Vector) -> None:
        """Keep a gradient-like vector for later steps and in checkpoints, in place of what was kept under the name.

        It is handed over, is stored in float32 (or float64) and without the loss scale, and counts once the step has
        succeeded: an exception, a climb along what is not finite (an overflow), or a vector to be kept that is not
        finite leaves all that was kept before. A parameter without a gradient in this step keeps its own.

        Args:
            name: one that the method's class lists in ``keeps``.
            vector: carries the loss scale, as gradients do.
        """

    def kept(self, name: str) -> Vector | None:
        """What was kept under the name last: a copy, which the caller owns, with this step's loss scale.

        Zeros for parameters that had no gradient when it was kept; None if nothing was.
        """

    def has_kept(self, name: str) -> bool:
        """Whether something is kept under the name."""

    @property
    def loss_scale(self) -> float | Tensor:
        """The factor that every gradient of this step carries: a ``GradScaler``'s, otherwise 1."""
