"""What the closures were seen to do with gradients, in first passes that are watched."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .micro_batch import Closure
from .parallel import sharded_modules
from .watch import Watch, leaves_of
from .weights import Weights

ZEROED = (
    "a closure has set gradients to zero or None that an earlier closure of the same list had left: it must not call "
    "zero_grad() (do so after optimizer.step())"
)


class Habits:
    """Watches the first pass of steps 1, 10, 100 and so on. What it once sees is allowed for in all later steps.

    A compiled model is not watched: it would be compiled once more for it.

    Args:
        model: the model that the closures call.
        weights: where weights and gradients are.

    Attributes:
        touch_gradients: closures read or set p.grad, so that a replay must begin without a gradient there.
        need_derivatives: the loss is made from derivatives, so that a probe must have them.
        are_whole_steps: closures may do anything to gradients, see ``allow_for_whole_steps``.
        idle: whether the last closure can be seen to have run no backward pass.
        asks_factors: whether to find ``factors``.
        factors: what the last closure multiplied means by before it ran backward; empty if that was not watched.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.model = model
        self.weights = weights
        self.touch_gradients = self.need_derivatives = self.are_whole_steps = False
        self.idle = False
        self.asks_factors = False
        self.factors: list[float | None] = []
        self.foreign: list[weakref.ref[Tensor]] = []

    def allow_for_whole_steps(self) -> None:
        """From now on a closure is a training step of the user's own, which may read, change and drop gradients."""
        self.touch_gradients = self.need_derivatives = self.are_whole_steps = True

    def first_pass(self, closure: Closure, number: int, always: bool, continues: bool) -> Any:
        """Make it, watched or not.

        Args:
            closure: the micro-batch's forward and backward.
            number: of the step, from 0.
            always: watch it whatever the step.
            continues: whether the gradient of an earlier micro-batch of the step is in p.grad.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: it has dropped the gradient of the earlier micro-batch.
        """
        self.idle, self.factors = False, []
        if not (always or _is_power_of_ten(number + 1)) or _is_compiled(self.model):
            result = closure()
            if isinstance(result, Tensor) and result.requires_grad and not self.weights.have_gradient():
                optimized = {id(p) for p in self.weights.parameters()}
                self.idle = any(id(leaf) in optimized for leaf in leaves_of([result]))
            return result
        watch = Watch(self.weights.parameters(), self.asks_factors)
        result = watch.run(closure)
        if watch.drops and continues and not self.are_whole_steps:
            raise RuntimeError(ZEROED)
        self.touch_gradients |= watch.touches
        self.need_derivatives |= watch.differentiates
        self.idle, self.factors = not watch.backwards and not self.weights.have_gradient(), watch.factors
        if not sharded_modules(self.model):  # FSDP2 leaves gradients on parameters that come and go
            self._meet(watch.leaves.values())
        return result

    def _meet(self, leaves: Iterable[Tensor]) -> None:
        known = {id(t) for t in [*self.weights.receivers(), *self.model.parameters(), *self.others()]}
        self.foreign += [weakref.ref(leaf) for leaf in leaves if id(leaf) not in known]

    def others(self) -> list[Tensor]:
        """Tensors outside the model and the base optimizer that the closures leave gradients on.

        Somebody else steps them (a loss with weights and an optimizer of its own): their gradient is to be that of the
        first pass.
        """
        alive = [(reference, reference()) for reference in self.foreign]
        self.foreign = [reference for reference, tensor in alive if tensor is not None]
        return [tensor for _, tensor in alive if tensor is not None]


def _is_power_of_ten(number: int) -> bool:
    return number >= 1 and str(number).strip("0") == "1"


def _is_compiled(model: nn.Module) -> bool:
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
