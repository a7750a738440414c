"""Optimizers that take their gradient elsewhere than from p.grad: a sharpness-aware step would not reach them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .. import vectors
from .for_a_while import leave
from .watch import reads_gradient

Attributes = dict[int, dict[str, Any]]

_REFUSED = (
    "{what}, so that a sharpness-aware step would mix the gradients of several passes and not decide the update. "
    "Per-example gradients (differential privacy) and optimizers that step in the backward pass are not supported: use "
    "an optimizer that steps with p.grad, or train without a sharpness-aware method"
)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError if it is known for taking its gradient elsewhere."""
    if hasattr(type(optimizer), "grad_samples"):  # Opacus
        raise ValueError(_REFUSED.format(what=f"{type(optimizer).__name__} steps with p.grad_sample, not with p.grad"))
    for group in optimizer.param_groups:
        if any(hasattr(p, "_in_backward_optimizers") for p in group["params"]):
            raise ValueError(_REFUSED.format(what="optimizers of single parameters step in the backward pass"))


def gradient_attributes(parameters: Iterable[Tensor]) -> Attributes:
    """What parameters have by names with "grad" in them, besides p.grad itself."""
    found = {}
    for parameter in parameters:
        own = {name: value for name, value in vars(parameter).items() if "grad" in name}
        if own:
            found[id(parameter)] = own
    return found


def check_pass(parameters: Iterable[Tensor], before: Attributes) -> None:
    """Raise a ValueError if a backward pass has left gradients in other attributes of the parameters than p.grad.

    Args:
        parameters: the base optimizer's.
        before: theirs before the pass, as ``gradient_attributes`` found them.
    """
    for parameter in parameters:
        earlier = before.get(id(parameter), {})
        for name, value in gradient_attributes([parameter]).get(id(parameter), {}).items():
            if value is not earlier.get(name) and any(_is_gradient(part, parameter) for part in _parts(value)):
                raise ValueError(_REFUSED.format(what=f"the backward pass leaves gradients in p.{name}"))


def check_left(parameters: Iterable[Tensor], reached: Iterable[Tensor]) -> None:
    """Raise a ValueError if backward passes came to some of the parameters, and none of them has a gradient.

    Args:
        parameters: the base optimizer's.
        reached: what the backward passes came to.
    """
    parameters = list(parameters)
    trained = {id(p) for p in parameters}
    if any(id(leaf) in trained for leaf in reached) and all(p.grad is None for p in parameters):
        raise ValueError(_REFUSED.format(what="a hook takes the gradients out of p.grad in the backward pass"))


class FirstStep:
    """Looks whether the base optimizer reads p.grad of its parameters in the first step that moves them."""

    def __init__(self) -> None:
        self.done = False
        self.optimizer: torch.optim.Optimizer
        self.mode: _Reads | None = None
        self.before: list[Tensor] = []
        self.hooks: list[RemovableHandle] = []

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at this optimizer's."""
        self.close()
        self.done = False
        self.optimizer = optimizer
        self.hooks = [
            optimizer.register_step_pre_hook(self._begins),
            optimizer.register_step_post_hook(self._ends),
        ]

    def stay_last(self) -> None:
        """Begin to look after all that others do before the coming step, which may read p.grad, or raise an error."""
        if self.hooks and not self.done:
            self.hooks[0].remove()
            self.hooks[0] = self.optimizer.register_step_pre_hook(self._begins)

    def close(self) -> None:
        """Look no longer."""
        for hook in self.hooks:
            hook.remove()
        self.abandon()

    def abandon(self) -> None:
        """A step that was begun has failed, or has ended."""
        leave(self.mode)
        self.mode = None

    def _begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.done or torch.compiler.is_compiling():
            return
        self.abandon()  # an earlier step has failed
        parameters = _with_gradient(optimizer)
        if parameters:
            self.before = vectors.norms(vectors.local(parameters))
            self.mode = _Reads(parameters)
            self.mode.__enter__()

    def _ends(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        mode = self.mode
        self.abandon()
        if mode is None:
            return
        now = [] if mode.reads else vectors.norms(vectors.local(list(mode.parameters.values())))
        if now and all(torch.equal(a, b) for a, b in zip(now, self.before, strict=True)):
            return  # it has not stepped yet
        self.done = True
        if now:
            raise ValueError(_REFUSED.format(what=f"{type(optimizer).__name__} steps without a look at p.grad"))


class _Reads(TorchFunctionMode):
    """Whether p.grad of one of the parameters is read."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.parameters = {id(p): p for p in parameters}
        self.reads = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads |= reads_gradient(func) and id(args[0]) in self.parameters
        return func(*args, **(kwargs or {}))


def _with_gradient(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_gradient(value: Any, parameter: Tensor) -> bool:
    """Whether it is of the parameter's shape, for the batch or for every example in it."""
    return isinstance(value, Tensor) and value.shape[value.dim() - parameter.dim() :] == parameter.shape
