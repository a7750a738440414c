"""The correction from a part of the batch (``fraction``): the gradient at the moved weights, estimated for all of it.

    g_s  ~  g_B + n/n_S (sum over S of [grad at w + delta] - [grad at w])

S is the step's first n_S of n micro-batches; without accumulation the first examples of the only one, where both of
their gradients come from passes of their own, each of a mean over S, so that there is no factor. The plain gradient g_B
of the whole batch counts in full, and only the difference is estimated, whose two halves share their examples and their
dropout masks. A method goes by it as by the gradient of a replay over the whole batch, so one that is linear in that
gradient needs to know nothing of it: SAM descends g_B + n/n_S (...), WSAM weighs the bracket by a.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import vectors
from ..methods import METHODS, Method, Options
from ..vectors import Vector
from .buckets import average_over_ranks_
from .micro_batch import Closure, MicroBatch
from .passes import Passes
from .weights import Weights, placed_gradients


def check_fraction(method: Method, fraction: float, scope: str, prefix: str = "", *, deepspeed: bool = False) -> None:
    """Raise a ValueError if a method's steps cannot go by a part of the batch.

    Args:
        method: the method.
        fraction: the part.
        scope: whose gradient makes the perturbation.
        prefix: how the caller's names of the options begin.
        deepspeed: whether the training runs under DeepSpeed.
    """
    if fraction == 1 or method.is_plain:
        return
    what = f"{prefix}fraction={fraction!r}"
    if not method.allows_fraction:
        defined = " or ".join(name for name, cls in METHODS.items() if cls.allows_fraction)
        raise ValueError(f"{what} is not defined for {method.name}: use {defined}, or {prefix}fraction=1")
    if method.decides_replays or method.replays != 1:
        raise ValueError(
            f"{what} is defined for one ascent step, and {method.name} makes another number of further passes here: "
            f"use {prefix}steps=1, or {prefix}fraction=1"
        )
    if scope == "micro_batch":
        raise ValueError(
            f"{what} does not go with {prefix}scope='micro_batch', where every micro-batch has a perturbation of its "
            f"own: use {prefix}scope='global' or 'device', or {prefix}fraction=1"
        )
    if deepspeed:
        raise ValueError(
            f"{what} does not run under DeepSpeed, which shows the gradient of the whole batch only: use FSDP2 or "
            f"DistributedDataParallel, or {prefix}fraction=1"
        )


class Fraction:
    """Notes, while a step's first passes are made, the gradient of its first micro-batches.

    Args:
        method: the method.
        options: the part of the micro-batches, and whose gradient makes the perturbation.
        weights: where weights and gradients are.

    Raises:
        ValueError: the method's steps cannot go by a part.
    """

    def __init__(self, method: Method, options: Options, weights: Weights) -> None:
        hidden = not weights.gradients_are_visible
        check_fraction(method, options.fraction, options.scope, deepspeed=hidden)
        self.fraction = options.fraction
        self.weights = weights
        self.forget()

    def forget(self) -> None:
        """The step is over."""
        self.size = 0
        self.gradient: dict[nn.Parameter, Tensor] = {}
        self.closure: PartClosure | None = None

    def ends_part(self, number: int, count: int) -> bool:
        """Whether a part of the batch ends with a micro-batch, and the batch goes on.

        Args:
            number: the micro-batch's, from 1 on.
            count: how many micro-batches the step is going to have.
        """
        return self.fraction < 1 and number == size_of_part(self.fraction, count) < count

    def note(self, number: int) -> None:
        """The part has ended with this micro-batch: keep a copy of the gradient."""
        self.size = number
        receivers = [p for p in self.weights.parameters() if p.grad is not None]
        self.gradient = dict(zip(receivers, vectors.clone(placed_gradients(receivers)), strict=True))

    def part(self, micro_batches: list[MicroBatch], losses: Sequence[Tensor]) -> Part | None:
        """The part of a step whose first passes have been made; None if further passes go over all of it."""
        if self.closure is not None and len(micro_batches) == 1:
            return ExamplesPart(micro_batches[0]._replace(closure=self.closure.run, size=self.closure.size))
        if not 0 < self.size < len(micro_batches):
            return None
        of_part = list(losses[: self.size])
        loss = sum(of_part[1:], start=of_part[0])
        return Part(micro_batches[: self.size], len(micro_batches) / self.size, loss, self.gradient)


def size_of_part(fraction: float, count: int) -> int:
    """How many of so many micro-batches, or examples, a part has."""
    return max(1, round(fraction * count))


def cost_of_a_part(fraction: float, count: int) -> float:
    """What the further passes over a part of so many micro-batches cost, in passes over all of them.

    Of a single micro-batch the part is some of its examples, which are gone through at both weights.
    """
    return 2 * fraction if count == 1 and fraction < 1 else size_of_part(fraction, count) / count


class PartClosure(NamedTuple):
    """Forward and backward over the first examples of a step's only micro-batch, from the mean loss over them.

    ``size`` is the part of the micro-batch that they are.
    """

    run: Closure
    size: float


class Part:
    """The part of a step's batch that further passes go over.

    Args:
        micro_batches: those of the part.
        weight: how many times the part's sum is the whole batch's.
        loss: the part's share of the loss at w.
        gradient: of that loss, by parameter; spent.
    """

    def __init__(
        self, micro_batches: list[MicroBatch], weight: float, loss: Tensor, gradient: dict[nn.Parameter, Tensor]
    ) -> None:
        self.micro_batches = micro_batches
        self.weight = weight
        self.loss = loss
        self.gradient = gradient
        self.base: Vector = []

    def begin(self, passes: Passes) -> None:
        """The whole batch's gradient is in p.grad: make of the part's own what a replay is to add to.

        In place: g_B n_S/n - C_S, to which the replay adds R_S; times n/n_S that is the estimate.
        """
        whole = passes.gradient()
        here = vectors.local(passes.params)
        own = [self.gradient.pop(p, None) for p in passes.params]
        self.base = [torch.zeros_like(t) if g is None else g for g, t in zip(own, here, strict=True)]
        vectors.scale_(self.base, 1.0 if passes.maximizes else -1.0)
        vectors.add_(self.base, whole, 1 / self.weight)

    def replay(self, passes: Passes, accumulate: bool, reduce: bool) -> Tensor:
        """Leave the estimate in p.grad, or add it to what is there.

        Args:
            passes: the passes of the step.
            accumulate: add.
            reduce: reduce the gradients over ranks.

        Returns:
            The same estimate of the loss.
        """
        scope = passes.scope
        wrapper = scope.data_parallel if passes.sets_gradients_aside and scope.reduces_ascent else None
        if wrapper is not None and wrapper.require_backward_grad_sync:
            # What is set aside is not reduced with the replay's gradient, and the part's own never was.
            average_over_ranks_(self.base, wrapper.process_group)
        if accumulate:
            there = passes.gradient()
            vectors.scale_(there, 1 / self.weight)
            vectors.add_(there, self.base)
        else:
            passes.put_gradient(self.base)
        self.base = []
        loss = passes.replay_over(self.micro_batches, accumulate=True, reduce=reduce)
        vectors.scale_(passes.gradient(), self.weight)
        return passes.metrics["loss"] + self.weight * (loss - self.loss)


class ExamplesPart(Part):
    """The first examples of a step's only micro-batch: both of their gradients come from passes of their own.

    The batch's own pass stays as it is, bit for bit. Both gradients are of the mean over the examples, as is the whole
    batch's over its own: nothing is to be weighed.

    Args:
        micro_batch: of the part.
    """

    def __init__(self, micro_batch: MicroBatch) -> None:
        super().__init__([micro_batch], 1.0, torch.zeros(()), {})

    def begin(self, passes: Passes) -> None:
        whole = passes.take_gradient()
        # DDP reduces the difference, with the replay; FSDP2 has the shards only of what is reduced.
        self.loss = passes.replay_over(
            self.micro_batches, accumulate=False, reduce=bool(passes.weights.sharded_modules)
        )
        self.base = passes.take_gradient()
        whole = passes.pad(whole)
        vectors.scale_(self.base, -1.0)
        vectors.add_(self.base, whole)
        passes.put_gradient(whole)
