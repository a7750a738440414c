"""Runs the range test in a Trainer: its training begins, is measured, warms up plainly, is measured again, and ends."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import torch
import transformers

from .. import vectors
from ..methods import METHODS, register
from ..methods.options import PREFIX, WHEN
from ..methods.registry import unregister
from .rho_method import NAME, Plan, RhoRange

MOST_WARM_UP = 200
"""Steps; a tenth of the training where that is less."""
LEAST_WARM_UP = 10


class CannotMeasure(ValueError):
    """The training leaves no room for the test, or makes no sharpness-aware steps; says what to do."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is wanted of the test.

    Args:
        radii: the radii to look at, rising.
        batches: batches for each metric, before and after the warm-up.
        warm_up: plain steps between. Default None: a tenth of the training, from 10 to 200.
    """

    radii: tuple[float, ...]
    batches: int = 4
    warm_up: int | None = None


def radii(lowest: float = 1e-4, highest: float = 10.0, points: int = 21) -> tuple[float, ...]:
    """A grid of equal ratios."""
    step = (math.log10(highest) - math.log10(lowest)) / (points - 1)
    return tuple(float(f"{10 ** (math.log10(lowest) + index * step):.6g}") for index in range(points))


class _Course(transformers.TrainerCallback):
    """Gives the method its plan once the length of the training is known, notes weights' norms, and stops in time."""

    def __init__(self, trainer: Any, wish: Wish) -> None:
        self.trainer = trainer
        self.wish = wish
        self.plan: Plan | None = None
        self.weight_norms: dict[int, float] = {}
        self.found: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        method = self.trainer._sharpness_engine.method
        if self.plan is None:
            self.plan = method.plan = plan_of(self.wish, state.max_steps)
            self.found = method.found
        if self.plan.look(state.global_step) is not None:
            params = self.trainer._sharpness_engine.parameters()
            self.weight_norms[state.global_step] = float(
                vectors.norm(vectors.local(params), self.trainer._sharpness_engine.weights.owners(params))
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.plan is not None and sys.stderr.isatty():
            end = "\n" if state.global_step == self.plan.steps else ""
            print(f"\rstep {state.global_step} of {self.plan.steps}", end=end, file=sys.stderr, flush=True)
        if self.plan is not None and state.global_step >= self.plan.steps:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False
        return control


def plan_of(wish: Wish, total: int) -> Plan:
    """The plan for a training of so many steps.

    Raises:
        CannotMeasure: it is too short.
    """
    warm_up = wish.warm_up
    if warm_up is None:
        warm_up = min(MOST_WARM_UP, max(LEAST_WARM_UP, total // 10))
    plan = Plan(wish.radii, wish.batches, warm_up)
    if plan.steps > total:
        raise CannotMeasure(
            f"the test takes {plan.steps} steps ({4 * wish.batches} that measure, {warm_up} of warm-up) and the "
            f"training has {total}: use fewer --batches, a shorter --warm_up, or a longer training"
        )
    return plan


def range_test(trainer: Any, wish: Wish) -> dict[str, Any]:
    """Begin a Trainer's training, measure, and end it there. The model keeps what the plain steps made of it.

    Args:
        trainer: of this package, not trained yet. Its ``optim``, or the base of its method, makes the plain steps.
        wish: what to measure.

    Returns:
        The record: what was trained, and ``looks``, one for every measured batch.

    Raises:
        CannotMeasure: the training is too short, or no step of it was measured.
    """
    args = trainer.args
    chosen = str(getattr(args.optim, "value", args.optim))
    if chosen not in METHODS:
        args.base_optim = chosen
    course = _Course(trainer, wish)
    for callback in (transformers.ProgressCallback, transformers.PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(course)
    register(RhoRange)
    usual = {"optim": NAME, f"{PREFIX}_rho_schedule": "constant", **{f"{PREFIX}_{n}": v for n, v in WHEN.items()}}
    own = {name: getattr(args, name) for name in usual} | {"optim": chosen}
    _set(args, usual)
    try:
        trainer.train()
    finally:
        _set(args, own)
        unregister(NAME)
        trainer.remove_callback(course)
    if course.plan is None or len(course.found) < 4 * wish.batches:
        raise CannotMeasure(
            f"the training ended after {trainer.state.global_step} steps, before all was measured: use fewer --batches "
            "or a shorter --warm_up"
        )
    return {
        "base_optim": args.base_optim,
        "learning_rate": args.learning_rate,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "warm_up": course.plan.warm_up,
        "batches": wish.batches,
        "total_steps": trainer.state.max_steps,
        "dtype": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "looks": [{**look, "weight_norm": course.weight_norms[look["step"]]} for look in course.found],
    }


def _set(args: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(args, name, value)
