"""From a recipe's training section to the training arguments, and whose mistake it is where they are refused."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import get_scheduler

from ..arguments import TrainingArguments
from ..sharing.values import short
from ..trainer import Trainer
from .errors import RecipeError, first_line
from .folders import default_folder
from .recipe import Recipe, check_training

REFUSALS = (ValueError, TypeError, ImportError, OverflowError, OSError)
"""What transformers, and the libraries below it, raise at arguments that cannot work."""


_BOUNDS = {
    "seed": (0, 2**32 - 1),
    "per_device_train_batch_size": (1, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
}
"""What transformers finds out only while it trains."""


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Make the training arguments of a recipe; without an `output_dir`, with the default folder.

    Raises:
        RecipeError: A key is unknown, or a value is not valid.
    """
    of_file = recipe.training_of_file
    if of_file is not None:
        given = {
            name: value for name, value in recipe.training.items() if name not in of_file or value != of_file[name]
        }
        check_training(given, TrainingArguments, "command line")
    check_training(recipe.training, TrainingArguments, recipe.origin)
    try:
        arguments = TrainingArguments(**recipe.training)
    except REFUSALS as error:
        raise refused(recipe, error) from error
    for name, (least, most) in _BOUNDS.items():
        value = getattr(arguments, name)
        if not least <= value <= most:
            bounds = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            raise refused(recipe, ValueError(f"{name}={value} is not valid: must be {bounds}"))
    if "output_dir" not in recipe.training:
        arguments.output_dir = str(default_folder(recipe.name, arguments))
    return arguments


def refused(recipe: Recipe, error: BaseException, model: Any = None) -> RecipeError:
    """The error for training arguments that do not work: of the command line if the file's own do.

    Args:
        recipe: What was to run.
        error: What was raised.
        model: The model, where optimizer and schedule may be what does not work.
    """
    origin = f"{recipe.origin}: training"
    if recipe.training_of_file is not None:
        try:
            arguments = TrainingArguments(**recipe.training_of_file)
            if model is not None:
                try_optimization(arguments, model)
            origin = "command line"
        except REFUSALS:
            pass
    return RecipeError(f"{origin}: {first_line(error)}")


def try_optimization(arguments: Any, model: Any) -> None:
    """Make optimizer and schedule once, for a single weight: what they refuse is known before the training begins.

    Raises:
        ValueError, TypeError, ImportError, OverflowError: As they do.
        ValueError: The schedule does not take its arguments.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    made, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    ours = made.__module__.startswith("torch.optim")  # others may want parameters of their own kind
    optimizer = made([weight], **options) if ours else torch.optim.SGD([weight], lr=0.1)
    try:
        _try_schedule(arguments, optimizer)
    except REFUSALS as error:
        if not arguments.lr_scheduler_kwargs:
            raise
        kind = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
        raise ValueError(
            f"lr_scheduler_kwargs={short(arguments.lr_scheduler_kwargs)} does not fit lr_scheduler_type='{kind}': "
            f"{first_line(error)}"
        ) from error


def _try_schedule(arguments: Any, optimizer: torch.optim.Optimizer) -> None:
    steps = 4
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=1,
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        for _ in range(steps):
            optimizer.step()
            schedule.step()
