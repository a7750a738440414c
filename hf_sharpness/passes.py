"""The passes of one optimizer step: climb, replay, probe, and put everything back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import rounding, vectors
from .snapshots import BufferState, RandomState, accelerators_of
from .support import mean_over_ranks
from .vectors import Vector

if TYPE_CHECKING:
    from .engine import Engine

Closure = Callable[[], Tensor]
"""Forward and backward of one micro-batch: adds to p.grad, returns the micro-batch's share of the batch's mean loss."""


class NonFiniteAscent(Exception):
    """The gradient to climb is not finite: the weights stay where they are and the gradient is left in p.grad."""


class SkipBackward(TorchFunctionMode):
    """Turns ``loss.backward()`` into nothing, so that a forward-and-backward closure serves as a forward probe.

    Attributes:
        over: whether the probe has ended. An interrupt that comes while the mode is being left leaves it on torch's
            stack, where it must do nothing from then on.
    """

    over = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.backward, torch.autograd.backward) and not self.over:
            return None
        return func(*args, **(kwargs or {}))


class Passes:
    """Runs a method on a list of micro-batches whose first pass has been made. Implements ``methods.base.Step``.

    Args:
        engine: the engine, for the method, the model and how gradients are reduced.
        micro_batches: closure and random state (at the start of its first pass) of every micro-batch.
        buffers: the model's buffers at the start of the first pass.
        loss: the loss of the first pass.
    """

    def __init__(
        self, engine: Engine, micro_batches: list[tuple[Closure, RandomState]], buffers: BufferState, loss: Tensor
    ) -> None:
        self.engine = engine
        self.micro_batches = micro_batches
        self.buffers_before = buffers
        self.buffers_after = BufferState(engine.model)
        self.random_after = RandomState(accelerators_of(engine.model.parameters()))
        self.metrics: dict[str, Tensor | float] = {"loss": loss}
        self.params: list[nn.Parameter] = []
        self.owners: Sequence[Any] = []
        self.coarse: list[bool] = []
        self.climbs = 0
        self.live: Vector = []
        self.saved: Vector = []
        self.copies: Vector = []
        self.saved_copies: Vector = []
        self.term: tuple[Vector, float] | None = None
        self.replays_made = 0
        self.skip_backward: SkipBackward | None = None
        self.displaced = False
        optimized = {id(p) for p in engine.parameters()}
        self.bystanders = [(p, p.grad) for p in engine.model.parameters() if id(p) not in optimized and p.requires_grad]
        engine.store.after_pass()
        self._activate()

    def run(self) -> None:
        """Run the method; afterwards p.grad holds its gradient, and weights, buffers and random state are as before."""
        try:
            try:
                self.engine.method.run(self)
            except NonFiniteAscent:
                if self.engine.reduces_last_replay:
                    # The other ranks reduce with their last replay: take part, and pass the non-finite values on.
                    self.replays_made = self.engine.method.replays - 1
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
            self.engine.store.weights_put_back()
        self.buffers_after.restore()
        self.random_after.restore()
        for parameter, gradient in self.bystanders:
            parameter.grad = gradient

    # Moving the weights.

    def climb(self, length: float, adaptive: bool = False) -> Vector:
        gradient = self.take_gradient()
        gradient_norm = self._ascent_norm(gradient)
        self._save()
        vectors.displacement_(gradient, length, gradient_norm, self.owners, self.saved if adaptive else None)
        self._move(self.live, gradient)
        self._weights_changed()
        return gradient

    def climb_keeping_gradient(self, length: float, adaptive: bool = False) -> None:
        gradient = self.gradient()
        gradient_norm = self._ascent_norm(gradient)
        self._save()
        vectors.copy_(self.live, gradient)
        vectors.displacement_(self.live, length, gradient_norm, self.owners, self.saved if adaptive else None)
        self._move(self.saved, self.live)
        self._weights_changed()

    def _move(self, start: Vector, step: Vector) -> None:
        """The live weights <- start + step, one of which they hold."""
        self.climbs += 1
        rounding.move_(self.live, start, step, self.coarse, self.engine.noise(self.climbs))

    def _ascent_norm(self, gradient: Vector) -> Tensor:
        gradient_norm = self.norm(gradient)
        engine = self.engine
        if engine.checks_overflow and not gradient_norm.isfinite():
            self.put_gradient(gradient)
            raise NonFiniteAscent
        if "ascent_grad_norm" not in self.metrics:
            scale = engine.loss_scale() if engine.loss_scale is not None else 1.0
            self.metrics["ascent_grad_norm"] = gradient_norm / scale
        return gradient_norm

    def _save(self) -> None:
        if not self.saved:
            copies = self.engine.store.copies()
            self.saved_copies = vectors.clone(copies)
            self.copies = copies
            self.saved = vectors.clone(self.live)

    def _weights_changed(self) -> None:
        """Drop every copy of the old weights: autocast's casts, and what FSDP2 gathered and did not free."""
        torch.clear_autocast_cache()
        self.engine.store.weights_changed()

    def _activate(self) -> None:
        """Take up parameters that have a gradient for the first time."""
        known = {id(p) for p in self.params}
        new = [p for p in self.engine.parameters() if p.grad is not None and id(p) not in known]
        for parameter in new:
            if parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} has a sparse gradient, which sharpness-aware steps "
                    "do not support: use nn.Embedding(..., sparse=False)"
                )
        live = vectors.local(new)
        saved = vectors.clone(live) if self.saved else []
        self.params = self.params + new
        self.owners = self.engine.store.owners(self.params)
        self.coarse = self.engine.store.seen_in_bfloat16(self.params)
        self.live, self.saved = self.live + live, self.saved + saved

    # Passes over the batch.

    def replay(self, accumulate: bool = False) -> None:
        if not accumulate:
            for parameter in self.engine.parameters():
                parameter.grad = None
        for parameter, _ in self.bystanders:
            parameter.grad = None
        waiting = vectors.local([p.grad for p in self.params]) if accumulate else []
        self.engine.store.before_replay()
        self.replays_made += 1
        final = self.replays_made == self.engine.method.replays
        reduce = self.engine.scope == "global" or (final and self.engine.reduces_last_replay)
        self.metrics["perturbed_loss"] = self._pass(reduce)
        self.engine.store.after_pass()
        if waiting and not self.engine.gradients_are_views:
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
        noise = self.engine.noise(0)  # the same for all probes, which are compared
        for factor, vector in terms:
            rounding.move_(self.live, self.live, vector, self.coarse, noise, factor)
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
            with self.engine.pass_context(reduce and last):
                losses.append(closure().detach())
        return torch.stack(losses).sum()

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        return mean_over_ranks(values, self.engine.rank_groups)

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
        if self.engine.gradients_are_views:
            gradient = vectors.clone(gradient)
        for parameter in self.params:
            parameter.grad = None
        return gradient

    def put_gradient(self, gradient: Vector) -> None:
        for parameter, tensor in zip(self.params, gradient, strict=True):
            parameter.grad = vectors.shaped_like(tensor, parameter)

    def pad(self, vector: Vector) -> Vector:
        return vector + [torch.zeros_like(t) for t in self.live[len(vector) :]]

    def norm(self, vector: Vector) -> Tensor:
        return vectors.norm(vector, self.owners[: len(vector)])

    def angle(self, a: Vector, b: Vector, a_norm: Tensor, b_norm: Tensor) -> Tensor:
        self._measure_displacement()
        return vectors.angle(a, b, a_norm, b_norm, self.live, self.owners)

    def descend_after_step(self, vector: Vector, weight: float) -> None:
        self.term = (vector, weight)

    def _measure_displacement(self) -> None:
        """Note how far the weights really moved (rounding included); spends the live weights."""
        if self.saved and not self.displaced:
            self.displaced = True
            vectors.add_(self.live, self.saved, -1.0)
            self.metrics["perturbation_norm"] = self.norm(self.live)
