"""Is a further pass a repetition of the first? One more pass at the unperturbed weights, compared with it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .. import vectors
from ..vectors import Vector
from .compiled import is_compiled
from .for_a_while import hooked
from .parallel import largest_over_ranks

SHARE = 0.05
"""A deviation above this share of what the perturbation itself changes spoils the update."""
FLOOR = {torch.float64: 1e-8, torch.float32: 1e-4}
"""By type of the gradient: the relative deviation that rounding may make. Of shorter types: HALF."""
HALF = 1e-2
MOST_CALLS = 20_000
MOVED = (
    ". Passes write to the weights themselves (decay by hand, say), so that this one began at other weights than the "
    "first: that may be all of it"
)


class Trace:
    """What the modules returned in a pass, as a few numbers for each call.

    Args:
        records: whether to look at all: a compiled model would be compiled once more for it.

    Attributes:
        is_half: whether a module returned 16-bit numbers, as under autocast.
    """

    def __init__(self, records: bool) -> None:
        self.records = records
        self.calls: list[tuple[nn.Module, Tensor | None]] = []
        self.is_half = False

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Around a micro-batch's pass."""
        if not self.records:
            yield
            return
        with hooked(register_module_forward_hook, self._note):
            yield

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        if len(self.calls) < MOST_CALLS:
            with torch.no_grad(), contextlib.suppress(Exception):  # tensors of every kind come by
                tensors = _tensors(output)
                self.is_half = self.is_half or any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors)
                self.calls.append((module, _digest(tensors)))

    def first_difference(self, other: Trace, tolerance: float) -> nn.Module | None:
        """The first module that returned something else in the other pass, None if there is none."""
        for (module, mine), (twin, theirs) in zip(self.calls, other.calls, strict=False):
            if module is not twin:
                return module
            if mine is None or theirs is None:
                continue
            if mine.shape != theirs.shape or not torch.allclose(
                mine, theirs, rtol=tolerance, atol=1e-12, equal_nan=True
            ):
                return module
        return None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [value for value in values if isinstance(value, Tensor)]


def _digest(tensors: list[Tensor]) -> Tensor | None:
    numbers = []
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.detach().flatten()
            numbers += [flat[:: max(1, len(flat) // 32)][:32].float(), flat.float().norm()[None]]
    return torch.cat(numbers) if numbers else None


class Guard:
    """Has a further pass compared with the first in the steps that are looked at closely.

    Args:
        mode: ``warn``, ``error`` or ``off``.
        model: for the names of its modules.
        is_half: whether the closures compute in 16 bits where their modules do not show it.

    Attributes:
        repetition: the comparison of the step under way, or None.
    """

    def __init__(self, mode: str, model: nn.Module, is_half: bool) -> None:
        self.mode, self.model, self.is_half = mode, model, is_half
        self.repetition: Repetition | None = None

    def step_begins(self, due: bool) -> None:
        """Decide whether the step is checked."""
        self.repetition = Repetition(self.mode, self.model, self.is_half) if due and self.mode != "off" else None

    def first_pass(self) -> contextlib.AbstractContextManager[None]:
        """Around the first pass of a micro-batch."""
        return contextlib.nullcontext() if self.repetition is None else self.repetition.first.recorded()

    def ended(self) -> bool:
        """Whether the step's check is complete: not if it was due and left out, as a gradient was not finite."""
        return self.repetition is None or self.repetition.made


class Repetition:
    """The comparison of one step.

    Args:
        mode: ``warn`` or ``error``.
        model: for the names of its modules.
        is_half: whether the closures compute in 16 bits where their modules do not show it.

    Attributes:
        first: what the modules returned in the first passes.
        made: whether the pass was made.
    """

    def __init__(self, mode: str, model: nn.Module, is_half: bool) -> None:
        self.mode = mode
        self.model = model
        self.is_half = is_half
        self.made = False
        compiled = is_compiled(model)
        self.first, self.second = Trace(not compiled), Trace(not compiled)
        self.gradient: Vector | None = None
        self.deviation = self.loss_deviation = self.size = self.loss_size = 0.0
        self.spread = self.loss_spread = 0.0
        self.floor = HALF
        self.moves_weights = False

    def make(self, passes: Any) -> None:
        """Make the pass, before the weights are moved; not with a gradient that is not finite on any rank.

        Args:
            passes: the passes of the step; p.grad holds the gradient of the first ones, and holds it afterwards.
        """
        groups = passes.weights.rank_groups()
        gradient = passes.take_gradient()
        size = passes.norm_of_all(gradient)
        (infinite,) = _largest([(~size.isfinite()).float()], groups)
        if infinite:
            passes.put_gradient(gradient)
            return
        adds = (passes.method.accumulates or passes.part is not None) and not passes.sets_gradients_aside
        self.moves_weights = passes.state.weights_were_set
        self._compare(passes, gradient, size, adds)
        if adds and self.in_doubt:
            self._compare(passes, gradient, size, False)
            # A difference that goes like this is what closures, or hooks, do with gradients that are there.
            passes.habits.touch_gradients |= not self.in_doubt
        for parameter in passes.trainable:
            parameter.grad = None
        for parameter, kept in passes.bystanders:
            parameter.grad = kept
        passes.put_gradient(gradient)
        self.gradient = vectors.clone(gradient) if self.in_doubt else None
        self.made = True

    def _compare(self, passes: Any, gradient: Vector, size: Tensor, adds: bool) -> None:
        """Make the pass, and measure how far it is from the first.

        Args:
            passes: the passes of the step.
            gradient: that of the first pass.
            size: its norm.
            adds: whether the pass begins with that in p.grad, as a replay which adds to it does.
        """
        for parameter in [*passes.trainable, *(p for p, _ in passes.bystanders)]:
            parameter.grad = None
        if adds:
            passes.put_gradient(vectors.clone(gradient))
            passes.turn_gradient()
        passes.weights.before_replay()
        self.second.calls.clear()
        with self.second.recorded(), _weights_kept(passes):
            loss = passes._pass(passes.scope.reduces_ascent)
        passes.weights.after_pass()
        passes.turn_gradient()
        again = passes.gradient()
        for _ in range(1 + adds):
            vectors.add_(again, gradient, -1.0)
        first_loss = passes.metrics["loss"]
        numbers = [passes.norm_of_all(again), size, (loss - first_loss).abs(), first_loss.abs()]
        self.deviation, self.size, self.loss_deviation, self.loss_size = _largest(numbers, passes.weights.rank_groups())
        is_half = self.is_half or self.first.is_half
        self.floor = HALF if is_half else max((FLOOR.get(t.dtype, HALF) for t in gradient), default=HALF)

    @property
    def in_doubt(self) -> bool:
        """Whether more than rounding lies between the passes."""
        small = self.deviation <= self.floor * self.size and self.loss_deviation <= self.floor * self.loss_size
        return not small

    def replayed(self, passes: Any, waiting: Vector) -> None:
        """The first replay has been made: note what the perturbation changes.

        Args:
            passes: the passes of the step.
            waiting: what was in p.grad before it, where it added to that.
        """
        if self.gradient is None:
            return
        change = vectors.clone(passes.gradient()[: len(self.gradient)])
        for other in (waiting, self.gradient):
            vectors.add_(change[: len(other)], other, -1.0)
        loss_change = (passes.metrics["perturbed_loss"] - passes.metrics["loss"]).abs()
        self.spread, self.loss_spread = _largest(
            [passes.norm_of_all(change), loss_change], passes.weights.rank_groups()
        )
        self.gradient = None

    def judge(self) -> None:
        """Warn, or raise a RuntimeError, if the pass was no repetition."""
        gradient_differs = self.deviation > SHARE * self.spread + self.floor * self.size
        loss_differs = self.loss_deviation > SHARE * self.loss_spread + self.floor * self.loss_size
        if not self.made or not (gradient_differs or loss_differs):
            return
        module = self.first.first_difference(self.second, self.floor)
        where = "No module returned anything else: look at the loss itself" if module is None else self._named(module)
        where += MOVED if self.moves_weights else ""
        message = (
            "a further pass at the same weights does not repeat the first: its gradient differs by "
            f"{self.deviation:.3g} (norm {self.size:.3g}; the perturbation itself changes it by {self.spread:.3g}), "
            f"its loss by {self.loss_deviation:.3g}. {where}. Sharpness-aware steps compare passes, so that this goes "
            "into the update. The usual cause is state that a pass changes where this package cannot find it, or "
            "randomness from elsewhere (an iterator, an extension, another process): keep it in attributes of the "
            "model, the loss or the Trainer, or make it independent of how often it is called. sam_check='off' "
            "(check='off' in a plain loop) turns this check off"
        )
        if self.mode == "error":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    def _named(self, module: nn.Module) -> str:
        names = {id(m): name for name, m in self.model.named_modules()}
        name = names.get(id(module)) or type(module).__name__
        return (
            f"The first module that returned something else is {name} ({type(module).__name__}), or what it was given"
        )


@contextlib.contextmanager
def _weights_kept(passes: Any) -> Iterator[None]:
    """Around the pass: what one writes to the weights itself (decay by hand, dead codes) is to be done once."""
    bound = [] if passes.weights.binds_weights else [(p, p.data) for p in passes.trainable]
    written = vectors.local(passes.trainable) if passes.state.weights_were_set else []
    before = vectors.clone(written)
    try:
        yield
    finally:
        elsewhere = [(parameter, data) for parameter, data in bound if parameter.data_ptr() != data.data_ptr()]
        for parameter, data in elsewhere:
            parameter.data = data
        if elsewhere:
            passes._follow()
        vectors.copy_(written, before)


def _largest(numbers: list[Tensor], groups: list[Any]) -> list[float]:
    """The numbers on the host, each the largest of all ranks."""
    return largest_over_ranks(torch.stack([number.detach().float() for number in numbers]), groups).tolist()
