"""Further passes in the Trainer: over a micro-batch, or some examples (``sam_fraction`` without accumulation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..engine.fraction import size_of_part
from ..engine.state import copied
from .first_examples import NoExamples, first_examples, number_of_examples
from .outermost import Call
from .replay import FirstPass


class InnerStep:
    """The ``training_step`` below this package's, with what it was called with.

    Args:
        step: the function, bound.
        model: the model.
        args: what comes after the inputs.
        kwargs: the same by name.
    """

    def __init__(self, step: Callable[..., Tensor], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.step, self.model, self.args, self.kwargs = step, model, args, kwargs

    def __call__(self, inputs: Any) -> Tensor:
        return self.step(self.model, inputs, *self.args, **self.kwargs)

    @property
    def number_of_items(self) -> Any:
        """Over how many items the loss is to be a mean (``num_items_in_batch``), None where the loss sees to it."""
        return self.args[0] if self.args else self.kwargs.get("num_items_in_batch")

    def of_items(self, inputs: Any, number: Any) -> Tensor:
        """The step over other inputs, whose loss is to be a mean over as many items."""
        kwargs = {key: value for key, value in self.kwargs.items() if key != "num_items_in_batch"}
        return self.step(self.model, inputs, number, *self.args[1:], **kwargs)


class Examples(NamedTuple):
    """The first examples of a micro-batch.

    Attributes:
        inputs: as ``training_step`` takes them.
        size: the part of the micro-batch that they are.
        run: the step over a copy of them.
    """

    inputs: Any
    size: float
    run: Callable[[], Tensor]


def examples(trainer: Any, fraction: float, first_pass: FirstPass, step: InnerStep) -> Examples | None:
    """The examples that further passes are to go over; None for the whole micro-batch. All ranks call it.

    Args:
        trainer: the Trainer.
        fraction: the part of the micro-batch.
        first_pass: of it.
        step: what is repeated.

    Raises:
        ValueError: they cannot be told from the others.
    """
    args = trainer.args
    if not _takes_examples(fraction, args):
        return None
    if first_pass.prepare is not None:
        _refuse(fraction, f"{type(trainer).__name__}'s own _prepare_inputs makes the batch")
    try:
        number = number_of_examples(first_pass.inputs)
    except NoExamples as error:
        _refuse(fraction, str(error))
    wanted = size_of_part(fraction, number)
    if wanted == number and args.world_size == 1:
        return None  # of several ranks each makes as many passes as the others
    inputs = first_examples(first_pass.inputs, wanted)
    items = step.number_of_items
    if items is not None:
        # The loop's own way of counting them: over all ranks, if it does so.
        _, items = trainer.get_batch_samples(iter([inputs]), 1, args.device)
    return Examples(inputs, wanted / number, lambda: step.of_items(copied(inputs, args.device), items))


def once_more(steps: Any, call: Call, first_pass: FirstPass, inputs: Any, run: Callable[[], Tensor]) -> Tensor:
    """A further pass over a micro-batch, or some of it.

    Args:
        steps: ``Steps`` of the Trainer.
        call: the outermost call that the micro-batch was first gone through in.
        first_pass: of the micro-batch.
        inputs: what is gone through, for the Trainer's count of operations.
        run: makes the pass.
    """
    trainer, forward_only = steps.trainer, not torch.is_grad_enabled()
    trainer.current_flos += float(trainer.floating_point_ops(inputs)) / (3 if forward_only else 1)
    before = steps.call, steps.replaying
    steps.call, steps.replaying = call, True
    try:
        with first_pass.repeated(), steps.guard.watched():
            return run()
    finally:
        steps.call, steps.replaying = before


def check_whole(trainer: Any, fraction: float, name: str) -> None:
    """Raise a ValueError where a subclass's whole ``training_step`` is repeated, and some examples were to be."""
    if _takes_examples(fraction, trainer.args):
        _refuse(fraction, f"{name} does more to the gradient than one call of super().training_step()")


def _takes_examples(fraction: float, args: Any) -> bool:
    return fraction < 1 and args.gradient_accumulation_steps == 1


def _refuse(fraction: float, why: str) -> NoReturn:
    raise ValueError(
        f"sam_fraction={fraction!r} takes the first examples of a batch, and cannot here: {why}. Use "
        "gradient_accumulation_steps with smaller batches (it then takes the first of these), or sam_fraction=1"
    )
