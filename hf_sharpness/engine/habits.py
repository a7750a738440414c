"""What the closures were seen to do with gradients, in first passes that are watched."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .compiled import is_compiled
from .elsewhere import check_left, check_pass, gradient_attributes
from .for_a_while import hooked
from .micro_batch import Closure
from .parallel import sharded_modules
from .state import State
from .state.checked_steps import is_power_of_ten
from .watch import Watch, leaves_of
from .weights import Weights

ZEROED = (
    "a closure, or a Trainer's compute_loss, has set gradients to zero or None that an earlier closure of the list, "
    "or micro-batch of the same step, had left: it must not call zero_grad() (do so after optimizer.step(), as the "
    "Trainer does)"
)


class Habits:
    """Watches the first pass of steps 1, 10, 100 and so on. What it once sees is allowed for in all later steps.

    A compiled model is not watched: it would be compiled once more for it.

    Args:
        model: the model that the closures call.
        weights: where weights and gradients are.

    Attributes:
        steps_made: the steps so far.
        touch_gradients: closures read or set p.grad, so that a replay must begin without a gradient there.
        need_derivatives: the loss is made from derivatives, so that a probe must have them.
        return_the_loss: closures return all that is descended, as those of a loop of the user's own are told to.
        are_whole_steps: closures may do anything to gradients, see ``allow_for_whole_steps``.
        idle: whether the last closure can be seen to have run no backward pass.
        asks_factors: whether to find ``factors``.
        factors: what the last closure multiplied means by before it ran backward; empty if that was not watched.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.model = model
        self.weights = weights
        self.touch_gradients = self.need_derivatives = self.are_whole_steps = False
        self.return_the_loss = False
        self.steps_made = 0
        self.idle = False
        self.asks_factors = False
        self.factors: list[float | None] = []
        self.foreign: list[weakref.ref[Tensor]] = []

    def allow_for_whole_steps(self) -> None:
        """From now on a closure is a training step of the user's own, which may read, change and drop gradients."""
        self.touch_gradients = self.need_derivatives = self.are_whole_steps = True

    def first_pass(self, closure: Closure, state: State, always: bool, continues: bool) -> Any:
        """Make it, watched or not.

        Args:
            closure: the micro-batch's forward and backward.
            state: of the passes; takes up that of modules outside the model which the closure calls.
            always: watch it whatever the step.
            continues: whether the gradient of an earlier micro-batch of the step is in p.grad.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: it has dropped the gradient of the earlier micro-batch.
            ValueError: it leaves gradients elsewhere than in p.grad.
        """
        self.idle, self.factors = False, []
        before = gradient_attributes(self.weights.parameters()) if not self.steps_made else {}
        if (always or is_power_of_ten(self.steps_made + 1)) and not is_compiled(self.model):
            result = self._watched(closure, state, continues)
        else:
            result = self._unwatched(closure)
        if not self.steps_made:
            check_pass(self.weights.parameters(), before)
        return result

    def note_graphs(self, parameters: Iterable[Tensor]) -> None:
        """After a first pass: with ``backward(create_graph=True)`` autograd adds no gradient in place."""
        self.touch_gradients |= any(p.grad is not None and p.grad.requires_grad for p in parameters)

    def _unwatched(self, closure: Closure) -> Any:
        result = closure()
        if isinstance(result, Tensor) and result.requires_grad and not self.weights.have_gradient():
            optimized = {id(p) for p in self.weights.parameters()}
            self.idle = any(id(leaf) in optimized for leaf in leaves_of([result]))
        return result

    def _watched(self, closure: Closure, state: State, continues: bool) -> Any:
        watch = Watch(self.weights.parameters(), self.asks_factors, self.weights.read_by_others())
        with self._meeting_modules(state):
            result = watch.run(closure)
        if watch.drops and continues and not self.are_whole_steps:
            raise RuntimeError(ZEROED)
        if not self.are_whole_steps and self.weights.gradients_are_visible:
            check_left(self.weights.parameters(), watch.leaves.values())
        self.touch_gradients |= watch.touches
        self.need_derivatives |= watch.differentiates
        self.idle, self.factors = not watch.backwards and not self.weights.have_gradient(), watch.factors
        if not sharded_modules(self.model):  # FSDP2 leaves gradients on parameters that come and go
            self._meet(watch.leaves.values())
        return result

    def _meet(self, leaves: Iterable[Tensor]) -> None:
        known = {id(t) for t in [*self.weights.receivers(), *self.model.parameters(), *self.others()]}
        self.foreign += [weakref.ref(leaf) for leaf in leaves if id(leaf) not in known]

    @contextlib.contextmanager
    def _meeting_modules(self, state: State) -> Iterator[None]:
        """Inside, modules outside the model that are called in train mode become known."""
        known = {id(module) for module in self.model.modules()}

        def meet(module: nn.Module, args: Any) -> None:
            if id(module) not in known:
                known.update(id(inner) for inner in module.modules())
                if module.training and any(True for _ in module.buffers()):
                    state.include(module)

        with hooked(register_module_forward_pre_hook, meet):
            yield

    def others(self) -> list[Tensor]:
        """Tensors outside the model and the base optimizer that the closures leave gradients on.

        Somebody else steps them (a loss with weights and an optimizer of its own): their gradient is to be that of the
        first pass.
        """
        alive = [(reference, reference()) for reference in self.foreign]
        self.foreign = [reference for reference, tensor in alive if tensor is not None]
        return [tensor for _, tensor in alive if tensor is not None]
