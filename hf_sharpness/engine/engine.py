"""Puts a sharpness-aware method between the backward pass and the base optimizer's step.

The base optimizer stays an ordinary one: the engine decides what is in ``p.grad`` when clipping and step come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..methods import Method, Options
from .checks import check_own_loop, check_supported
from .course import Course
from .directions import Directions
from .earlier import Arrivals
from .elsewhere import FirstStep
from .fraction import Fraction, PartClosure
from .guard import Guard
from .habits import Habits
from .kept import Kept
from .measured import merged
from .micro_batch import Closure, MicroBatch
from .optimizers import base_optimizer, kind_of
from .passes import Passes
from .phase import Phase
from .progress import Progress
from .rounding import Noise
from .scopes import Scope
from .state import Root, State
from .targets import Targets
from .term import Term
from .weights import Weights


class Engine:
    """Runs one method on one model and its base optimizer.

    One optimizer step is ``begin()``, ``record(closure, last)`` for every micro-batch, ``finish()``; then the caller
    clips, calls ``optimizer.step()`` and sets the gradients to None or zero as ever.

    Args:
        method: the method with its hyper-parameters.
        model: the model that the closures call (in DDP, sharded by FSDP2, or neither).
        optimizer: the base optimizer. The parameters in its groups that get a gradient are perturbed.
        options: what can be chosen for the steps of every method. Default: as ``methods.Options`` has it.
        loss_scale: returns the factor on the closures' loss (a ``GradScaler``'s), as a tensor. Default None: no factor.
        no_sync: makes a context in which a backward pass does not reduce gradients over ranks.
        weights: where weights and gradients are. Default None: in the parameters of the optimizer's groups.
        is_half: whether closures compute in 16 bits where modules do not show it (compiled ones).
        total_steps: how many optimizer steps the training makes; None if not known.
        scheduler: the learning rate's, for ``start="decay"``; or the step that it says.
        roots: objects beside the model that hold state of a pass. Default None: what the closures refer to.

    Attributes:
        course, phase: what goes on from step to step, which a resumed run loads; which steps are sharpness-aware.

    Raises:
        ValueError: the combination cannot be exact; the message says what to do instead.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        options: Options | None = None,
        loss_scale: Callable[[], Tensor] | None = None,
        no_sync: Callable[[], AbstractContextManager] | None = None,
        weights: Weights | None = None,
        is_half: bool = False,
        total_steps: int | None = None,
        scheduler: object = None,
        roots: Iterable[Root] | None = None,
    ) -> None:
        self.model = model
        if weights is None:
            check_own_loop(model)
        self.weights = weights or Weights(model, base_optimizer(optimizer))
        self.optimizer = self.weights.optimizer
        self.method = method.resolved(kind_of(self.optimizer))
        options = options or Options()
        self.phase = Phase(options, self.method, self.optimizer, Progress(total_steps), scheduler)
        check_supported(self.method, model, self.optimizer, options.scope, self.weights.named())
        self.fraction = Fraction(self.method, options, self.weights)
        self.targets = Targets(options.target_modules, self.weights)
        self.scope = Scope(options.scope, model, no_sync, self.method, in_parts=options.fraction < 1)
        self.loss_scale = loss_scale
        self.state = State(self.weights, roots)
        self.guard = Guard(options.check, model, is_half or loss_scale is not None)
        self.metrics: dict[str, Tensor | float] = {}
        kept = Kept(self.method.name, self.method.keeps, self.weights)
        self.course = Course(self.phase.progress, kept, Directions(self.weights, self.scope.reduces_ascent))
        self.habits = Habits(model, self.weights)
        self.term = Term(self.weights, self.scope, loss_scale, lambda: self.on_cpu, self._report_ratio)
        if self.method.adds_after_step:
            self.term.attach(self.weights)
        self.first_step = FirstStep()
        if not self.method.is_plain and self.weights.gradients_are_visible:
            self.first_step.follow(self.optimizer)
        self._forget_step()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Make steps for another base optimizer from now on, if it is another one.

        Raises:
            ValueError: the combination cannot be exact.
        """
        if (base := base_optimizer(optimizer)) is self.optimizer or not self.weights.gradients_are_visible:
            return  # DeepSpeed keeps its own
        self.optimizer = self.weights.optimizer = base
        check_supported(self.method, self.model, base, self.scope.name, self.weights.named())
        self.state.checked_steps.follow(base)
        if self.method.adds_after_step:
            self.term.attach(self.weights)
        if not self.method.is_plain:
            self.first_step.follow(base)

    def _report_ratio(self, ratio: Tensor) -> None:
        if self.method.step_ratio:
            self.metrics[self.method.step_ratio] = ratio

    def _forget_step(self) -> None:
        self.micro_batches: list[MicroBatch] = []
        self.losses: list[Tensor] = []
        self.state.forget()
        self.passes: Passes | None = None
        self.measured: list[dict[str, Tensor | float]] = []
        self.fraction.forget()
        self.arrivals = Arrivals(self.weights, self.scope)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters in the base optimizer's groups, in their order."""
        return self.weights.parameters()

    @property
    def on_cpu(self) -> bool:
        """Whether reading a tensor's value on the host waits for nothing."""
        return next(self.model.parameters()).device.type == "cpu"

    def begin(self) -> None:
        """Start an optimizer step; what an interrupted one left is put back. Gradients still there count too."""
        self._put_back()

    def start_epoch(self) -> None:
        """Take note that the next step is the first of an epoch."""
        self.method.start_epoch()
        self.state.checked_steps.epoch_begins()

    def record(self, closure: Closure, last: bool, count: int = 1, part: PartClosure | None = None) -> Tensor:
        """Run a micro-batch's first pass and remember it for the replays; returns the closure's loss, detached.

        Args:
            closure: forward and backward of the micro-batch; returns its share of the batch's mean loss.
            last: it is the step's last.
            count: how many the step is going to have, as far as is known.
            part: for passes over some of the examples of a step's only micro-batch. Default None: over all.
        """
        if self.phase.is_plain:
            return self._plain_pass(closure, last)
        with self._aborting_on_error():
            if not self.losses:
                self.scope.begin_step()
                self.term.begin()
            alone, begins = self.scope.is_each_micro_batch, not self.micro_batches
            self.arrivals.look(begins)
            if begins:
                self.guard.step_begins(self.state.begin(self.phase.count_before(self.phase.number) + 1))
            self.fraction.closure = part
            moment = self.state.take(closure, *([] if part is None else [part.run]))
            ends_part = not last and self.fraction.ends_part(len(self.micro_batches) + 1, count)
            with (
                self.scope.first_pass_context(last, ends_part),
                self.state.watched(),
                self.guard.first_pass(),
            ):
                loss = self.habits.first_pass(closure, self.state, self.method.probes, continues=not begins)
            if not isinstance(loss, Tensor):
                raise TypeError(f"the closure returned {type(loss).__name__}: it must return the loss, a tensor")
            self.micro_batches.append(MicroBatch(closure, moment))
            self.losses.append(loss := loss.detach())
            if ends_part:
                self.fraction.note(len(self.micro_batches))
            if alone:
                if self.weights.have_gradient():
                    self._run_method(loss)
                self.arrivals.earlier.add_back()
                self.micro_batches = []
            elif not last:
                self.arrivals.note()
            return loss

    def _plain_pass(self, closure: Closure, last: bool) -> Tensor:
        self.habits.idle, self.habits.factors = False, []
        self.term.begin()
        with self.scope.pass_context(reduce=last):
            return closure().detach()

    @property
    def has_pending(self) -> bool:
        """Whether ``finish`` is to be called for what is recorded."""
        return bool(self.micro_batches or self.measured)

    def forget_last(self) -> None:
        """Drop the micro-batch recorded last, whose closure has left no gradient."""
        del self.micro_batches[-1:], self.losses[-1:]
        if not self.micro_batches:
            self.arrivals.earlier.put_back()

    def finish(self) -> None:
        """Run the method: afterwards p.grad holds the gradient for the base optimizer, the weights are as before."""
        with self._aborting_on_error():
            if not self.phase.is_plain:
                self._finish_passes()
            self.term.finish()
            self.first_step.stay_last()
            self.metrics = merged(self.measured)
            self.course.step_made()
            self._forget_step()
            self.weights.finish()

    def _finish_passes(self) -> None:
        if not self.scope.is_each_micro_batch:
            self._run_method(torch.stack(self.losses).sum())
            self.arrivals.earlier.gradients = self.scope.averaged(self.arrivals.earlier.gradients)
            self.arrivals.earlier.add_back()
        if self.scope.averages_itself:
            self.term.vector = self.scope.average(self.parameters(), self.term.vector)
        self.habits.steps_made += 1

    def noise(self, use: int) -> Noise:
        """Random bits for one use within this run of the method; another run, step or shard gets others."""
        return Noise(torch.initial_seed(), self.weights.shard_index(), self.phase.number, len(self.measured), use)

    def abort(self) -> None:
        """Put the weights back if they are moved, and drop everything that belongs to an unfinished step."""
        self._put_back()
        self.term.drop()

    def _put_back(self) -> None:
        if self.passes is not None:
            self.passes.restore()
        self.first_step.abandon()
        self.arrivals.take_back()
        self.weights.abandon()
        self.course.step_failed()
        self.term.forget()
        self._forget_step()

    def drop_pending(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget a term that waits for a step of this optimizer which did not happen (a GradScaler skipped it)."""
        self.term.was_left_out(optimizer)

    def close(self) -> None:
        """``abort``, and take the hooks off the optimizer."""
        self.abort()
        self.term.close()
        self.first_step.close()
        self.state.close()

    def clean_weights(self) -> AbstractContextManager[None]:
        """Inside, the weights are the unperturbed ones, even for a signal handler in the middle of a pass."""
        return contextlib.nullcontext() if self.passes is None else self.passes.clean_weights()

    @contextlib.contextmanager
    def _aborting_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _run_method(self, loss: Tensor) -> None:
        self.passes = passes = Passes(
            self.method,
            self.model,
            self.weights,
            self.scope,
            self.micro_batches,
            self.state,
            loss,
            habits=self.habits,
            repetition=self.guard.repetition,
            part=self.fraction.part(self.micro_batches, self.losses),
            targets=self.targets.now(),
            course=self.course,
            noise=self.noise,
            loss_scale=self.loss_scale,
            checks_overflow=self.loss_scale is not None or self.on_cpu,  # an accelerator would wait: in fp16 only
        )
        with self.phase.rho_of_step(self.optimizer):
            passes.run()
        self.term.collect(passes)
        self.measured.append(passes.metrics)
        self.passes = None
        self.state.was_checked(self.guard.ended())
