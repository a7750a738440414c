"""The passes of one optimizer step: climb, replay, probe, and put everything back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import vectors
from ..methods import Method
from ..vectors import Vector
from . import rounding
from .climbs import NonFiniteAscent
from .course import Course
from .earlier import EarlierGradients
from .guard import Repetition
from .habits import Habits
from .held import HeldGradients
from .micro_batch import MicroBatch
from .probes import Probes
from .rebound import Rebound
from .replays import Replays
from .scopes import Scope
from .state import State
from .weight_copies import forget_weight_copies
from .weights import Weights


class BatchPart(Protocol):
    """A part of the batch that further passes go over in the place of all of it (``fraction``)."""

    def begin(self, passes: Passes) -> None:
        """The whole batch's gradient is in p.grad, and no weight has been moved."""

    def replay(self, passes: Passes, accumulate: bool, reduce: bool) -> Tensor:
        """Leave the estimate of the whole batch's gradient in p.grad, or add it; returns that of its loss."""
        ...


class Passes(Probes):
    """Runs a method on a list of micro-batches whose first pass has been made. Implements ``methods.step.Step``.

    Args:
        method: the method.
        model: the model that the closures call.
        weights: where weights and gradients are.
        scope: how gradients are reduced over ranks.
        micro_batches: those whose first pass has been made.
        state: what a pass changes besides weights and gradients, at the moments of this step.
        loss: the loss of the first pass.
        habits: what the closures were seen to do.
        repetition: the comparison of a further pass with the first, in a step that makes one.
        part: the part of the batch that replays go over; None for all of it.
        targets: ids of the parameters that are perturbed; None for all.
        course: what the steps are part of.
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
        state: State,
        loss: Tensor,
        *,
        habits: Habits,
        repetition: Repetition | None = None,
        part: BatchPart | None = None,
        targets: set[int] | None = None,
        course: Course,
        noise: Callable[[int], rounding.Noise],
        loss_scale: Callable[[], Tensor] | None,
        checks_overflow: bool,
    ) -> None:
        state.train_all()
        super().__init__(weights, scope, course, noise, loss_scale, checks_overflow, loss, habits, targets)
        self.method = method
        self.repetition = repetition
        self.part = part
        self.micro_batches = micro_batches
        self.state = state
        self.held = HeldGradients(moment.tensors for moment in state.before)
        weights.after_pass()
        self.held.take(self.trainable)
        habits.note_graphs(self.trainable)
        self.after = state.after_first_passes()
        self.term: tuple[Vector, float, bool] | None = None
        self.device = loss.device
        self.counted: Replays  # once the method runs
        self.is_home = False
        self.rebound = Rebound()
        self.firsts: list[nn.Parameter] = []
        optimized = {id(p) for p in self.trainable}
        others: list[Tensor] = [*(p for p in model.parameters() if p.requires_grad), *habits.others(), *state.leaves()]
        self.bystanders = [(p, p.grad) for p in {id(p): p for p in others}.values() if id(p) not in optimized]
        self._activate()
        self.turn_gradient()

    def run(self) -> None:
        """Run the method; afterwards p.grad holds its gradient, and weights and all other state are as before."""
        try:
            try:
                if self.repetition is not None:
                    self.repetition.make(self)
                if self.part is not None:
                    self.part.begin(self)
                self.counted = Replays(self.method, self, self.weights.rank_groups, self.device)
                self.method.run(self)
                self.counted.check_all_made()
                if self.checks_overflow:
                    self.course.kept.check_finite()
            except NonFiniteAscent:
                self.course.kept.spoil()
                if self.scope.reduces_last_replay and self.counted.skip_to_last():
                    # The other ranks reduce with their last replay: take part, and pass the non-finite values on.
                    self.replay(accumulate=True)
            self._measure_displacement()
            self.turn_gradient()
        finally:
            # The restore proper is one call into C++ from this frame: no point in between at which Python could
            # deliver an interrupt.
            if self.saved:
                torch._foreach_copy_(self.moved_memory, self.saved_memory)
                self.is_home = True
            self.restore()
        self.held.give_back()
        self.state.after_further_passes()
        if self.repetition is not None:
            self.repetition.judge()

    def restore(self) -> None:
        """Weights and all other state as the first pass left them. Harmless to repeat."""
        self._end_probe()
        if self.saved:
            if not self.is_home:
                vectors.copy_(self.moved_memory, self.saved_memory)
            if self._follow():
                vectors.copy_(self.moved_memory, self.saved_memory)
            self.rebound.return_home(self.firsts, self.live)
            forget_weight_copies()
            self.weights.weights_put_back()
        self.after.restore()
        for parameter, gradient in self.bystanders:
            parameter.grad = gradient

    @property
    def moved_memory(self) -> Vector:
        """All memory that weights lie on, or have lain on in these passes."""
        return self.live + self.rebound.left + self.copies

    @property
    def saved_memory(self) -> Vector:
        """What it is to hold again."""
        return self.saved + [self.saved[index] for index in self.rebound.indices] + self.saved_copies

    def _follow(self) -> bool:
        """Take up the memory that a pass has bound weights to; returns whether there is any."""
        on_their_own = [index not in self.memory.flat for index in self.memory.firsts()]
        return self.rebound.follow(self.firsts, self.live, on_their_own)

    @contextlib.contextmanager
    def clean_weights(self) -> Iterator[None]:
        """Inside, the weights are the saved ones, as far as they are saved."""
        if not self.saved:
            yield
            return
        # `.data` hides the change from autograd, whose graph of an interrupted pass needs the weights only as they
        # were when it goes on, and they are.
        self.weights.check_can_save()
        self._follow()
        live = [tensor.data for tensor in self.moved_memory]
        moved = vectors.clone(live)
        vectors.copy_(live, self.saved_memory)
        try:
            yield
        finally:
            vectors.copy_(live, moved)

    def _activate(self) -> None:
        """Take up parameters that have a gradient for the first time."""
        known = {id(p) for p in self.params}
        new = [p for p in self.trainable if p.grad is not None and id(p) not in known]
        if known and not new:
            return
        for parameter in new:
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} has a sparse gradient, which sharpness-aware steps "
                    "do not support: use nn.Embedding(..., sparse=False)"
                )
        places = {id(p): index for index, p in enumerate(self.trainable)}
        moved = new
        if self.targets is not None:
            # Those that are perturbed come first; one that gets its first gradient later in the step is not.
            moved = [p for p in new if id(p) in self.targets] if not self.params else []
            first = set(map(id, moved))
            new = moved + [p for p in new if id(p) not in first]
        live = self.memory.use([places[id(p)] for p in moved])
        saved = vectors.clone(live) if self.saved else []
        self.params, self.moved = self.params + new, self.moved + moved
        self.firsts = [self.moved[member] for member in self.memory.members]
        self.owners = self.weights.owners(self.firsts)
        self.coarse = self.weights.seen_in_bfloat16(self.firsts)
        self.live, self.saved = self.live + live, self.saved + saved

    def turn_gradient(self) -> None:
        """Where the base optimizer maximises: from the closures' gradient to that of minus the loss, or back."""
        if self.maximizes:
            vectors.scale_(vectors.local([p.grad for p in self.params if p.grad is not None]), -1.0)

    # Passes over the batch.

    @property
    def replays(self) -> int:
        return self.counted.announced

    @property
    def sets_gradients_aside(self) -> bool:
        """Whether what a pass is to add to is not in p.grad meanwhile."""
        return self.habits.touch_gradients or self.scope.reduces_alone

    def replay(self, accumulate: bool = False) -> None:
        final = self.counted.one_more()
        repetition = self.repetition
        doubted = repetition is not None and repetition.gradient is not None
        there = vectors.clone(self.gradient()) if doubted and accumulate else []
        reduce = self.scope.reduces_ascent or (final and self.scope.reduces_last_replay)
        if self.part is None:
            loss = self.replay_over(self.micro_batches, accumulate, reduce)
        else:
            loss = self.part.replay(self, accumulate, reduce)
        self.metrics["perturbed_loss"] = loss
        if repetition is not None and doubted:
            repetition.replayed(self, there)

    def replay_over(self, micro_batches: list[MicroBatch], accumulate: bool, reduce: bool) -> Tensor:
        """Forward and backward of micro-batches at the current weights; returns the sum of their losses.

        Args:
            micro_batches: the step's, or a part of them.
            accumulate: add to p.grad.
            reduce: reduce the gradients over ranks with the last one's.
        """
        aside = accumulate and self.sets_gradients_aside
        waiting = EarlierGradients(self.trainable if aside else ())
        if aside and self.scope.reduces_last_replay:
            self.scope.has_to_average = True  # what waits is this rank's own, and is not there to be reduced
        for parameter in self.trainable if not accumulate else ():
            parameter.grad = None
        for bystander, _ in self.bystanders:
            bystander.grad = None
        added_to = vectors.gradients(self.params) if accumulate and not aside else []
        if added_to:
            self.turn_gradient()
        self.weights.before_replay()
        self.scope.before_replay()
        loss = self._pass(reduce, micro_batches)
        self.weights.after_pass()
        self.held.take(self.trainable)
        if added_to and not self.scope.gradients_are_views:
            self._check_accumulated(added_to)
        self._activate()
        self.turn_gradient()
        waiting.add_back()
        return loss

    def _check_accumulated(self, added_to: Vector) -> None:
        for parameter, earlier in zip(self.params, added_to, strict=False):
            now = parameter.grad
            if now is None or vectors.local([now])[0].data_ptr() != earlier.data_ptr():
                raise RuntimeError(
                    "the gradients that a pass was to add to were replaced in it: the closure, or a Trainer's "
                    "compute_loss or training_step, must not call zero_grad() (do so after optimizer.step(), as the "
                    "Trainer does)"
                )

    def _pass(self, reduce: bool, micro_batches: list[MicroBatch] | None = None) -> Tensor:
        """One more pass over micro-batches (all if not given), each from the state that its first pass began with."""
        micro_batches = self.micro_batches if micro_batches is None else micro_batches
        self.course.progress.pass_made(sum(micro_batch.size for micro_batch in micro_batches))
        losses = []
        for index, micro_batch in enumerate(micro_batches):
            micro_batch.before.restore()
            forget_weight_copies()  # a pass at the same weights cannot use what an earlier one has spent
            last = index == len(micro_batches) - 1
            with self.scope.pass_context(reduce and last), self.state.watched():
                losses.append(micro_batch.repeat())
        self._follow()
        return torch.stack(losses).sum()

    def descend_after_step(self, vector: Vector, weight: float, preconditioned: bool = False) -> None:
        self.term = (vector, weight, preconditioned)
