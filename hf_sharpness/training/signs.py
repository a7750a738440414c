"""Signs that hyper-parameters do not fit, told while the training still runs: any method's, and those of its own.

``methods/signs.py`` says what a sign is.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..methods import METHODS, Method
from ..methods.registry import arguments_of
from ..methods.signs import CHANCE, FEW, LONG, mean

BEGINNING = 50
"""How many optimizer steps a training may take to learn anything, however short its epochs are."""


class Signs:
    """Collects what a training logs, and looks for the signs.

    Args:
        method: the method at work.
        model: the model, for the number of classes that its config may tell.
        args: the training arguments.
    """

    def __init__(self, method: Method, model: Any, args: Any) -> None:
        self.method = method
        self.args = args
        self.classes = _classes(model)
        self.losses: list[float] = []
        self.sharpness: list[float] = []
        self.ratios: list[float] = []
        self.late: list[float] = []
        self.since_evaluation: list[float] = []
        self.evaluations: list[tuple[float, float]] = []
        self.not_finite: Tensor | None = None
        self.steps_not_finite = 0
        self.epoch = 0.0
        self.found: set[Callable[[Signs], str | None]] = set()

    def step(self, metrics: dict[str, Tensor | float]) -> None:
        """Take in what a step measured; no synchronisation with an accelerator."""
        losses = [value for name in ("loss", "perturbed_loss") if isinstance(value := metrics.get(name), Tensor)]
        if losses:
            bad = ~torch.stack(losses).isfinite().all()
            self.not_finite = bad.long() if self.not_finite is None else self.not_finite + bad

    def log(self, logs: dict[str, float], epoch: float, step: int, is_main: bool) -> None:
        """Take in a log, made after so many epochs and optimizer steps, and look for signs."""
        if self.not_finite is not None:
            self.steps_not_finite, self.not_finite = self.steps_not_finite + int(self.not_finite), None
        if "eval_loss" in logs:
            if self.since_evaluation:
                self.evaluations.append((mean(self.since_evaluation), logs["eval_loss"]))
            self.since_evaluation = []
        elif "loss" in logs and "learning_rate" in logs:
            self._add(float(logs["loss"]), logs, epoch, step)
        self.epoch = epoch
        for sign in (*SIGNS, *self.method.signs):
            if sign not in self.found and (problem := sign(self)) is not None:
                self.found.add(sign)
                if is_main:
                    warnings.warn(problem, stacklevel=2)

    def _add(self, loss: float, logs: dict[str, float], epoch: float, step: int) -> None:
        self.losses.append(loss)
        self.since_evaluation.append(loss)
        self.sharpness.append(logs.get("sharpness", 0.0))
        if self.method.step_ratio in logs:
            self.ratios.append(logs[self.method.step_ratio])
        if step > BEGINNING and epoch > (0.5 if self.args.num_train_epochs <= 1 else 1):
            self.late.append(loss)

    def named(self, field: str) -> str:
        """A hyper-parameter as an argument with its value; in words, where the method has none of the name."""
        argument = self.argument(field)
        return f"{argument}={getattr(self.method, field)!r}" if argument else f"the step of optim={self.method.name!r}"

    @property
    def length(self) -> str:
        """How far the method perturbs, the first of its ``radii``, as ``named``."""
        return self.named(next(iter(self.method.lengths()), "rho"))

    def argument(self, field: str) -> str | None:
        """What a field of the method is called among the arguments; None where it has no such field."""
        own = arguments_of(METHODS[self.method.name])
        return next((argument for argument, h in own.items() if h.name == field), None)


def rho_too_large(seen: Signs) -> str | None:
    """The step up the slope costs more than the training can win; or it ends below, far from where the slope was."""
    pairs = list(zip(seen.losses, seen.sharpness, strict=True))[-LONG:]
    first = seen.losses[0] if seen.losses else 0.0
    if len(pairs) < LONG or not all(s > max(loss, first) or s < -0.1 * first for loss, s in pairs):
        return None
    loss, sharpness = pairs[-1]
    return (
        f"{seen.length} is too large: for {LONG} logs the sharpness has been above the loss and what it was at "
        f"first, or far below zero (now sharpness {sharpness:.3g}, loss {loss:.3g}, at first {first:.3g}). Make it "
        "smaller, by a factor of 5 or so"
    )


def too_small(seen: Signs) -> str | None:
    """Overfitting under a hyper-parameter far below what regularises."""
    last = seen.evaluations[-CHANCE - 1 :]
    falls_and_rises = all(b[0] < a[0] and b[1] > a[1] for a, b in itertools.pairwise(last))
    if len(last) <= CHANCE or not falls_and_rises:
        return None
    usual = seen.method.usual
    small = [field for field, value in usual.items() if getattr(seen.method, field) < value / 2]
    if not small:
        return None
    remedy = " and ".join(f"{seen.argument(field)}={usual[field]}" for field in small)
    return (
        f"{' and '.join(map(seen.named, small))} too small to regularise: the training loss falls while the evaluation "
        f"loss has risen {CHANCE} times in a row (now {last[-1][1]:.3g}). Try {remedy}"
    )


def loss_not_finite(seen: Signs) -> str | None:
    """A loss that is NaN or infinite, before the ascent or after it; three steps under fp16 may be its scaler's."""
    if seen.steps_not_finite <= (CHANCE if seen.args.fp16 else 0):
        return None
    return (
        f"the loss was not finite in {seen.steps_not_finite} steps so far, at the weights or after the ascent: halve "
        f"{seen.length} or learning_rate={seen.args.learning_rate!r}"
    )


def no_better_than_guessing(seen: Signs) -> str | None:
    """A classifier that has learned nothing in the first epoch (in half of the only one) and some steps."""
    if seen.classes is None or len(seen.late) != FEW:
        return None
    loss, guessing = mean(seen.late), math.log(seen.classes)
    if not loss >= guessing:
        return None
    return (
        f"the training loss ({loss:.3g}) is still that of guessing among {seen.classes} classes "
        f"({guessing:.3g}) or more. Make {seen.length} smaller, by a factor of 5 or so; if that does not help, "
        f"learning_rate={seen.args.learning_rate!r} is too large, or too small"
    )


SIGNS: tuple[Callable[[Signs], str | None], ...] = (
    rho_too_large,
    too_small,
    loss_not_finite,
    no_better_than_guessing,
)


def _classes(model: Any) -> int | None:
    """The number of classes of a model that chooses one; None for any other."""
    config = getattr(model, "config", None)
    classes = getattr(config, "num_labels", None)
    single = getattr(config, "problem_type", None) in (None, "single_label_classification")
    is_classifier = any("Classification" in cls.__name__ for cls in type(model).__mro__)
    return classes if is_classifier and single and isinstance(classes, int) and classes > 1 else None
