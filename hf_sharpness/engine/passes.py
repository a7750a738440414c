"""The passes of one optimizer step: climb, replay, probe, and put everything back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import vectors
from ..methods import Method
from ..vectors import Vector
from . import rounding
from .micro_batch import MicroBatch
from .overlap import Memory
from .parallel import mean_over_ranks
from .scopes import Scope
from .skip_backward import SkipBackward
from .state import BufferState, RandomState, accelerators_of
from .weights import Weights


class NonFiniteAscent(Exception):
    """The gradient to climb is not finite: the weights stay where they are and the gradient is left in p.grad."""


class Passes:
    """Runs a method on a list of micro-batches whose first pass has been made. Implements ``methods.step.Step``.

    Args:
        method: the method.
        model: the model that the closures call.
        weights: where weights and gradients are.
        scope: how gradients are reduced over ranks.
        micro_batches: those whose first pass has been made.
        buffers: the model's buffers at the start of the first pass.
        loss: the loss of the first pass.
        noise: makes the random bits for a use within these passes, given its number.
        loss_scale: returns the factor by which the closures scale their loss, or None.
        checks_overflow: whether every ascent looks first if its gradient is finite.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        weights: Weights,
        scope: Scope,
        micro_batches: list[MicroBatch],
        buffers: BufferState,
        loss: Tensor,
        *,
        noise: Callable[[int], rounding.Noise],
        loss_scale: Callable[[], Tensor] | None,
        checks_overflow: bool,
    ) -> None:
        self.method = method
        self.weights = weights
        self.scope = scope
        self.noise = noise
        self.loss_scale = loss_scale
        self.checks_overflow = checks_overflow
        self.micro_batches = micro_batches
        self.buffers_before = buffers
        self.buffers_after = BufferState(model)
        self.random_after = RandomState(accelerators_of(model.parameters()))
        self.metrics: dict[str, Tensor | float] = {"loss": loss}
        self.params: list[nn.Parameter] = []
        self.owners: Sequence[Any] = []
        self.coarse: list[bool] = []
        self.climbs = 0
        self.trainable = weights.parameters()
        self.memory = Memory(vectors.local(self.trainable))
        self.live: Vector = []
        self.saved: Vector = []
        self.copies: Vector = []
        self.saved_copies: Vector = []
        self.term: tuple[Vector, float] | None = None
        self.replays_made = 0
        self.skip_backward: SkipBackward | None = None
        self.displaced = False
        self.large = False
        optimized = {id(p) for p in self.trainable}
        self.bystanders = [(p, p.grad) for p in model.parameters() if id(p) not in optimized and p.requires_grad]
        weights.after_pass()
        self._activate()

    def run(self) -> None:
        """Run the method; afterwards p.grad holds its gradient, and weights, buffers and random state are as before."""
        try:
            try:
                self.method.run(self)
            except NonFiniteAscent:
                if self.scope.reduces_last_replay:
                    # The other ranks reduce with their last replay: take part, and pass the non-finite values on.
                    self.replays_made = self.method.replays - 1
                    self.replay(accumulate=True)
            self._measure_displacement()
        finally:
            # The restore proper is one call into C++ from this frame: no point in between at which Python could
            # deliver an interrupt.
            if self.saved:
                torch._foreach_copy_(self.live + self.copies, self.saved + self.saved_copies)
            self.restore()

    def restore(self) -> None:
        """Weights, buffers and random state as the first pass left them. Harmless to repeat."""
        self._end_probe()
        if self.saved:
            vectors.copy_(self.live + self.copies, self.saved + self.saved_copies)
            torch.clear_autocast_cache()
            self.weights.weights_put_back()
        self.buffers_after.restore()
        self.random_after.restore()
        for parameter, gradient in self.bystanders:
            parameter.grad = gradient

    # Moving the weights.

    def climb(self, length: float, adaptive: bool = False) -> Vector:
        gradient = self.take_gradient()
        gradient_norm = self._ascent_norm(gradient)
        self._save()
        weights = self.memory.views(self.saved) if adaptive else None
        vectors.displacement_(gradient, length, gradient_norm, self.norm, weights)
        self._move(self.live, self.memory.folded(gradient))
        self._weights_changed()
        return gradient

    def climb_keeping_gradient(self, length: float, adaptive: bool = False) -> None:
        gradient = self.gradient()
        gradient_norm = self._ascent_norm(gradient)
        self._save()
        vectors.copy_(self.live, self.memory.folded(gradient))
        vectors.displacement_(self.live, length, gradient_norm, self._norm, self.saved if adaptive else None)
        self._move(self.saved, self.live)
        self._weights_changed()

    def _move(self, start: Vector, step: Vector) -> None:
        """The live weights <- start + step, one of which they hold."""
        self.climbs += 1
        rounding.move_(self.live, start, step, self.coarse, self.noise(self.climbs))

    def _ascent_norm(self, gradient: Vector) -> Tensor:
        gradient_norm = self.norm(gradient)
        if self.checks_overflow and not gradient_norm.isfinite():
            self.large = True
            gradient_norm = self.norm(gradient)
            if not gradient_norm.isfinite():
                self.put_gradient(gradient)
                raise NonFiniteAscent
        if "ascent_grad_norm" not in self.metrics:
            scale = self.loss_scale() if self.loss_scale is not None else 1.0
            self.metrics["ascent_grad_norm"] = gradient_norm / scale
        return gradient_norm

    def _save(self) -> None:
        if not self.saved:
            copies = self.weights.copies()
            self.saved_copies = vectors.clone(copies)
            self.copies = copies
            self.saved = vectors.clone(self.live)

    def _weights_changed(self) -> None:
        """Drop every copy of the old weights: autocast's casts, and what FSDP2 gathered and did not free."""
        torch.clear_autocast_cache()
        self.weights.weights_changed()

    def _activate(self) -> None:
        """Take up parameters that have a gradient for the first time."""
        known = {id(p) for p in self.params}
        new = [p for p in self.trainable if p.grad is not None and id(p) not in known]
        for parameter in new:
            if parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} has a sparse gradient, which sharpness-aware steps "
                    "do not support: use nn.Embedding(..., sparse=False)"
                )
        places = {id(p): index for index, p in enumerate(self.trainable)}
        live = self.memory.use([places[id(p)] for p in new])
        saved = vectors.clone(live) if self.saved else []
        self.params = self.params + new
        firsts = [self.params[member] for member in self.memory.members]
        self.owners = self.weights.owners(firsts)
        self.coarse = self.weights.seen_in_bfloat16(firsts)
        self.live, self.saved = self.live + live, self.saved + saved

    # Passes over the batch.

    def replay(self, accumulate: bool = False) -> None:
        if not accumulate:
            for parameter in self.trainable:
                parameter.grad = None
        for parameter, _ in self.bystanders:
            parameter.grad = None
        waiting = vectors.local([p.grad for p in self.params]) if accumulate else []
        self.weights.before_replay()
        self.replays_made += 1
        final = self.replays_made == self.method.replays
        reduce = self.scope.reduces_ascent or (final and self.scope.reduces_last_replay)
        self.metrics["perturbed_loss"] = self._pass(reduce)
        self.weights.after_pass()
        if waiting and not self.scope.gradients_are_views:
            self._check_accumulated(waiting)
        self._activate()

    def _check_accumulated(self, waiting: Vector) -> None:
        for parameter, earlier in zip(self.params, waiting, strict=False):
            now = parameter.grad
            if now is None or vectors.local([now])[0].data_ptr() != earlier.data_ptr():
                raise RuntimeError(
                    "the closure replaced the gradients it was to add to: it must not call zero_grad() (do so after "
                    "optimizer.step())"
                )

    def probe(self, terms: list[tuple[float, Vector]]) -> Tensor:
        self._measure_displacement()
        vectors.copy_(self.live, self.saved)
        noise = self.noise(0)  # the same for all probes, which are compared
        for factor, vector in terms:
            rounding.move_(self.live, self.live, self.memory.folded(vector), self.coarse, noise, factor)
        self._weights_changed()
        self.skip_backward = SkipBackward()
        torch.set_grad_enabled(False)  # restore() turns it on again, wherever an interrupt comes
        with self.skip_backward:
            loss = self._pass(reduce=True)
        self._end_probe()
        return loss

    def _end_probe(self) -> None:
        if self.skip_backward is not None:
            self.skip_backward.over = True
            self.skip_backward = None
            torch.set_grad_enabled(True)

    def _pass(self, reduce: bool) -> Tensor:
        """One more pass over all micro-batches, with the buffers and the random numbers of the first."""
        self.buffers_before.restore()
        losses = []
        for index, (closure, random_state) in enumerate(self.micro_batches):
            random_state.restore()
            last = index == len(self.micro_batches) - 1
            with self.scope.pass_context(reduce and last):
                losses.append(closure().detach())
        return torch.stack(losses).sum()

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        return mean_over_ranks(values, self.weights.rank_groups())

    # Gradients.

    def gradient(self) -> Vector:
        for parameter in self.params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif vectors.is_sharded(parameter) and parameter.grad.placements != parameter.placements:
                # Tensor parallel: an embedding's gradient comes as partial sums.
                parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
        return vectors.local([p.grad for p in self.params])

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

    def pad(self, vector: Vector) -> Vector:
        return vector + [torch.zeros_like(t) for t in vectors.local(self.params[len(vector) :])]

    def norm(self, vector: Vector) -> Tensor:
        return self._norm(self.memory.folded(vector))

    def _norm(self, folded: Vector) -> Tensor:
        owners = self.owners[: len(folded)]
        norm = vectors.norm(folded, owners)
        return torch.where(norm.isfinite(), norm, vectors.norm_of_large(folded, owners)) if self.large else norm

    def angle(self, a: Vector, b: Vector, a_norm: Tensor, b_norm: Tensor) -> Tensor:
        self._measure_displacement()
        a, b = self.memory.folded(a), self.memory.folded(b)
        return vectors.angle(a, b, a_norm, b_norm, self.live, self.owners)

    def descend_after_step(self, vector: Vector, weight: float) -> None:
        self.term = (vector, weight)

    def _measure_displacement(self) -> None:
        """Note how far the weights really moved (rounding included); spends the live weights."""
        if self.saved and not self.displaced:
            self.displaced = True
            vectors.add_(self.live, self.saved, -1.0)
            self.metrics["perturbation_norm"] = self._norm(self.live)
