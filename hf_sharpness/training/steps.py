"""Where a Trainer's step becomes sharpness-aware: its outermost ``training_step``, and the inner one of this package.

A subclass may do things before and after ``super().training_step(...)``: time it, open contexts, generate the batch.
Then the inner call is what is repeated, within the outermost call, and the subclass's own things happen once. Where
the outermost call does more to the gradient than the one inner call did (calls it twice, or never; runs a backward of
its own; changes p.grad), this step is taken anew, and so are all later ones, with the outermost call repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..engine import Engine
from ..engine.fraction import PartClosure
from ..engine.parallel import any_rank
from ..engine.state import copied
from .accumulation import AccelerateState, micro_batches_of_a_step
from .before import BeforeStep
from .gradient_watch import GradientWatch
from .lost import BackwardPasses, LostPass, tell_left_out
from .outermost import Call, Step, within_a_callback
from .parts import Examples, InnerStep, check_whole, examples, once_more
from .replay import FirstPass
from .stepping import GENERATES, OPTIMIZER_STEPS, OptimizerGuard, generation_refused


class Steps:
    """Takes a Trainer's steps by the engine.

    Args:
        trainer: the Trainer.
        engine: its engine.
        inner: this package's ``training_step``, as a function.
        stock: transformers' own Trainer.

    Attributes:
        whole: the outermost call is what is repeated.
        gradient_is_ready: the step under way has been taken; the optimizer may step.
        replaying: a pass is under way that is not the first of its micro-batch.
    """

    def __init__(self, trainer: Any, engine: Engine, inner: Step, stock: Any) -> None:
        self.trainer = trainer
        self.engine = engine
        self.inner_function = inner
        self.stock = stock
        self.whole = False
        self.gradient_is_ready = self.replaying = False
        self.call: Call | None = None
        self.number: int | None = None
        self.calls: list[Call] = []
        self.before: BeforeStep | None = None
        self.differs = False
        self.asked = False
        self.gradients = GradientWatch([])
        self.guard = OptimizerGuard(self._refuse_optimizer, engine.state.puts_back)

    # The outermost call.

    def outermost(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A micro-batch of the training loop; after the last one of an optimizer step p.grad is the method's.

        Args:
            step: the outermost ``training_step``, bound.
            args: its arguments.
            kwargs: its arguments by name.

        Returns:
            What ``step`` returned in the first pass.
        """
        if self.call is not None or within_a_callback(self.stock.train.__code__):
            return step(*args, **kwargs)
        self.engine.follow(self.trainer.optimizer)
        accelerate = AccelerateState(self.trainer.accelerator)
        call = Call(step, args, kwargs, accelerate.sync_gradients, accelerate)
        self.number = self.engine.phase.number if self.number is None else self.number
        with self.guard.installed(self.engine.parameters(), self.trainer):
            try:
                try:
                    result = self._take(call)
                except LostPass:
                    tell_left_out(self.engine, call)
                    self._skip()
                    for parameter in self.engine.parameters():
                        parameter.grad = None
                    result = call.loss
                if call.last:
                    with self.guard.watched(False):  # DeepSpeed has its optimizer step
                        self.engine.weights.step()
            except BaseException:
                self.calls, self.number = [], None
                self.engine.abort()
                raise
            finally:
                self.call = None
                self.gradients.close()
        if call.last:
            self.engine.course.progress.steps_made, self.number = self.number + 1, None  # also of a skipped batch
            self.calls, self.before, self.differs = [], None, False
            self.gradient_is_ready = True
        return result

    def _take(self, call: Call) -> Any:
        self.call = call
        if self.engine.phase.is_plain:
            return self._plain(call)
        if self.whole:
            return self._as_a_whole(call)
        if self._is_inner(call.step):
            return call.run(call.inputs)
        return self._tried(call)

    def _is_inner(self, step: Step) -> bool:
        """Whether nobody has overridden this package's ``training_step``."""
        return getattr(step, "__func__", None) is self.inner_function

    def _plain(self, call: Call) -> Any:
        result = call.run(call.inputs)
        if call.last:
            self.engine.finish()
        return result

    def _tried(self, call: Call) -> Any:
        """The inner call is repeated, as long as the outermost one does no more to the gradient than that did."""
        if self.before is None or not self.calls:
            self.before = BeforeStep(self.trainer, self.engine)
        self.before.call_begins()
        self.calls.append(call)
        self.asked = False
        call.kept = copied(call.inputs)
        self.gradients = GradientWatch.of(self.engine)
        self.gradients.note()
        result = call.run(call.inputs)
        differs = call.differs or call.inner_calls > 1 or self.gradients.changed()
        self.gradients.close()
        if not self.engine.weights.have_gradient():  # the batch, or all since the last step, is skipped
            self._skip()
            self.calls, differs = [], False
            self.differs = False
        if not call.last:
            self.differs = self.differs or differs
            self.before.call_ended()
            return result
        if not self.asked:
            self._ask(differs)
        if not self.differs and self.engine.has_pending:  # the last micro-batch was skipped
            self.engine.finish()
        self._ask(differs)
        return self._taken_anew() if self.differs else result

    def _skip(self) -> None:
        """The user's code has dropped all gradients: the optimizer will not step."""
        self.engine.abort()
        self.engine.metrics = {}

    def _ask(self, differs: bool = False) -> None:
        """Agree with the other ranks whether the step differs from its inner calls. They all ask equally often."""
        self.asked = True
        self.differs = any_rank(self.differs or differs, self.engine.weights.rank_groups(), self.trainer.args.device)

    # The step as a whole.

    def _taken_anew(self) -> Any:
        """Take the step back, and take it as a whole, as all later ones."""
        calls, self.calls, last = self.calls, [], self.call
        assert last is not None
        self.whole = True
        self.engine.habits.allow_for_whole_steps()
        self.engine.abort()
        assert self.before is not None
        self.before.restore()
        self.replaying = True  # what the first attempt has logged is not logged again
        try:
            for call in calls:
                self.call = call
                call.accelerate.restore()
                result = self._as_a_whole(call, copied(call.kept))
            last.accelerate.restore()
            if self.engine.has_pending:  # it was skipped
                self.engine.finish()
        finally:
            self.replaying = False
        return result

    def _as_a_whole(self, call: Call, inputs: Any = None) -> Any:
        """The outermost call is repeated, and with it all that it does.

        Args:
            call: the call.
            inputs: for the first pass. Default None: the loop's own.
        """
        check_whole(self.trainer, self.engine.fraction.fraction, call.name)
        if call.kept is None:
            call.kept = copied(call.inputs)
        if inputs is None:
            inputs = call.inputs
        results: list[Any] = []
        first_pass = FirstPass(self.trainer, call.kept, self.stock._prepare_inputs, self.engine.state, whole=True)
        first_pass.check_repeatable()

        def run(inputs: Any) -> Tensor:
            results.append(call.run(inputs))
            value = results[-1]
            return value if isinstance(value, Tensor) else torch.as_tensor(value, device=self.trainer.args.device)

        self.gradients = GradientWatch.of(self.engine)
        self.gradients.note(through_data=False)
        self._record(first_pass, run, call, inputs)
        skipped = not self.gradients.changed()
        self.gradients.close()
        if skipped:
            self.engine.forget_last()
        if not self.engine.weights.have_gradient():
            self._skip()
        if call.last and self.engine.has_pending:
            self.engine.finish()
        return results[0]

    # The inner call.

    def inner(self, plain: InnerStep, inputs: Any) -> Tensor:
        """This package's ``training_step``, called by the loop or by a subclass's own.

        Args:
            plain: the ``training_step`` below.
            inputs: the micro-batch.

        Returns:
            The clean loss of the micro-batch, detached.
        """
        call = self.call
        if call is None or self.whole or self.engine.phase.is_plain:
            return plain(inputs)
        call.inner_calls += 1
        if self._is_inner(call.step):
            return self._repeated(call, plain, inputs)
        if call.inner_calls > 1:
            return plain(inputs)
        call.differs = self.gradients.changed()
        self.gradients.close()
        if call.last:
            self._ask(call.differs)
        if self.differs or call.differs:
            loss = plain(inputs)
        else:
            call.differs = True  # unless it ends well: the user's code may catch the error
            loss = self._repeated(call, plain, inputs)
            call.differs = False
        self.gradients.note()
        return loss

    def _repeated(self, call: Call, plain: InnerStep, inputs: Any) -> Tensor:
        first_pass = FirstPass(self.trainer, inputs, self.stock._prepare_inputs, self.engine.state)
        some = examples(self.trainer, self.engine.fraction.fraction, first_pass, plain)
        loss = self._record(first_pass, plain, call, first_pass.inputs_of_a_pass(), some)
        if call.last:
            self.engine.finish()
        return loss

    def _record(
        self, first_pass: FirstPass, run: Callable[[Any], Tensor], call: Call, inputs: Any, some: Examples | None = None
    ) -> Tensor:
        passes = BackwardPasses(self.trainer.accelerator)

        def closure() -> Tensor:
            if passes.first is None:  # the Trainer counts it
                no_text = generation_refused(self.trainer, self.stock, self._refuse_generation, self.whole)
                with first_pass.recorded(), self.guard.watched(), passes.compared(), no_text:
                    call.loss = run(inputs)
                return call.loss
            with passes.compared():
                return once_more(self, call, first_pass, first_pass.inputs, lambda: run(first_pass.inputs_of_a_pass()))

        part = None
        if some is not None:
            part = PartClosure(lambda: once_more(self, call, first_pass, some.inputs, some.run), some.size)
        return self.engine.record(closure, call.last, micro_batches_of_a_step(self.trainer), part)

    # What cannot be repeated.

    def _refuse_optimizer(self, optimizer: Optimizer) -> None:
        self._refuse(OPTIMIZER_STEPS, optimizer=type(optimizer).__name__)

    def _refuse_generation(self) -> None:
        self._refuse(GENERATES)

    def _refuse(self, why: str, **names: str) -> None:
        assert self.call is not None
        loss = f"{type(self.trainer).__name__}'s loss (compute_loss, or the model's forward)"
        where = loss if self._is_inner(self.call.step) else self.call.name
        error = ValueError(f"optim={self.trainer.args.optim!r} does not fit: {why.format(where=where, **names)}")
        self.call.refusal = error
        raise error
