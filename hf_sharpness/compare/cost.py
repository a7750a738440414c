"""What a step of each arm costs, measured before the study begins: passes, and processor time with one thread."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from transformers import TrainingArguments

from ..engine.decay import decay_step
from ..engine.phase import first_from
from ..methods import METHODS
from ..methods.options import DECAY, PREFIX, WHEN
from ..methods.registry import arguments_of
from ..tasks.prepare import PreparedRun
from ..tasks.run import train
from .arms import Arm, settings_of
from .errors import CompareError
from .observe import Observer
from .quiet import quiet_runs

_ROUNDS, STEPS, WARM_UP = 3, 8, 2
_WHEN = {f"{PREFIX}_{name}": usual for name, usual in WHEN.items()}
"""The arguments that say in which steps an arm is sharpness-aware, as they are where it is in all of them."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of an arm's optimizer step.

    Args:
        passes: Forward and backward passes over the effective batch, a forward alone a third.
        seconds: Processor time with one thread; on an accelerator time on the clock.
    """

    passes: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the task is: optimizer steps of an epoch, and seconds that a run takes besides its steps."""

    steps_per_epoch: float
    overhead: float


class Seen(Protocol):
    """What was counted of a few steps (`Observer`, or the record of a script)."""

    micro_batches: int
    with_gradient: float
    forward_only: float

    @property
    def step_seconds(self) -> Sequence[float]: ...


def measure_costs(prepared: Callable[..., PreparedRun], arms: Sequence[Arm]) -> tuple[dict[str, Cost], Scale]:
    """Train each arm for a few steps, the arms taking turns, and return their costs by name, and the task's scale.

    Args:
        prepared: Makes a run that has not begun, from training arguments, a seed, and whether it is a final one.
        arms: The arms that have runs.
    """
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    seen: dict[str, Seen] = {}
    overheads: list[float] = []
    steps_per_epoch = 1.0
    with _one_thread():
        for _ in range(_ROUNDS):
            for arm in arms:
                settings = settings_of(arm)[0]
                with tempfile.TemporaryDirectory(prefix="hf-sharpness-") as folder, quiet_runs():
                    arguments = {**arm.arguments, **settings, **in_every_step(arm), "max_steps": STEPS}
                    arguments["output_dir"] = folder
                    began = time.process_time()
                    run = prepared(arguments, 0, False)
                    observer = Observer()
                    run.trainer.add_callback(observer)
                    train(run)
                    run.trainer.evaluate()
                    overheads.append(time.process_time() - began - sum(observer.step_seconds))
                batches = len(run.trainer.get_train_dataloader())
                steps_per_epoch = max(1.0, batches / run.arguments.gradient_accumulation_steps)
                seconds[arm.name] += observer.step_seconds[WARM_UP:]
                seen[arm.name] = observer
    costs = {arm.name: cost_of(seen[arm.name], arm, steps_per_epoch, seconds[arm.name]) for arm in arms}
    return costs, Scale(steps_per_epoch, float(np.median(overheads)))


def in_every_step(arm: Arm) -> dict[str, Any]:
    """For an arm that is sharpness-aware in some steps: the arguments with which it is in all."""
    return {name: usual for name, usual in _WHEN.items() if any(name in each for each in (arm.arguments, arm.choices))}


def over_the_training(cost: Cost, base: Cost, arm: Arm, total: int, decay: Callable[[int], int]) -> Cost:
    """The mean cost of a step over the whole training, from that of a sharpness-aware one.

    Args:
        cost: That of a sharpness-aware step.
        base: That of a step of the base optimizer's own.
        arm: The arm; where tuning chooses when it is on, that with most sharpness-aware steps counts.
        total: Optimizer steps of the training.
        decay: Returns the step at which the learning rate begins its last fall in so many.
    """
    if not in_every_step(arm):
        return cost
    shares = []
    for settings in settings_of(arm):
        start, stop = ({**_WHEN, **arm.arguments, **settings}[name] for name in _WHEN)
        first = decay(total) if start == DECAY else first_from(float(start), total)
        shares.append(max(0, first_from(float(stop), total) - first) / total)
    share = max(shares)
    return Cost(
        *(b + share * (c - b) for c, b in zip(dataclasses.astuple(cost), dataclasses.astuple(base), strict=True))
    )


def decay_in(arguments: TrainingArguments, total_steps: int) -> int:
    """The step at which the learning rate of these training arguments begins its last fall.

    Raises:
        CompareError: It has none.
    """
    optimizer = torch.optim.SGD([torch.zeros(())], lr=arguments.learning_rate)
    warmup = arguments.get_warmup_steps(total_steps)
    options: Any = arguments.lr_scheduler_kwargs  # a dict, once the arguments are made
    try:
        scheduler = transformers.get_scheduler(
            arguments.lr_scheduler_type, optimizer, warmup, total_steps, scheduler_specific_kwargs=options
        )
        return decay_step(scheduler, total_steps)
    except ValueError as error:
        raise CompareError(f"--arms: {error}") from error


def passes_of_a_step(seen: Seen, arm: Arm, steps_per_epoch: float) -> float:
    """Passes a step; a search that is made once an epoch is spread over the epoch, however few steps were tried."""
    batches = max(seen.micro_batches, 1)
    searched, steps = seen.forward_only / 3, len(seen.step_seconds)
    if searched and steps and _searches_by_epochs(arm):
        searched *= steps / (math.ceil(steps / steps_per_epoch) * steps_per_epoch)
    return (seen.with_gradient + searched) / batches


def _searches_by_epochs(arm: Arm) -> bool:
    method = METHODS.get(arm.arguments.get("optim", ""))
    if method is None:
        return False
    own = arguments_of(method)
    return method.searches_by_epochs({h.name: arm.arguments.get(name, h.default) for name, h in own.items()})


def cost_of(seen: Seen, arm: Arm, steps_per_epoch: float, step_seconds: Sequence[float]) -> Cost:
    """The cost of an arm from a few steps, of which the first ones, that warm up and search, are not timed.

    Args:
        seen: The passes that were counted.
        arm: Whose they are.
        steps_per_epoch: Optimizer steps of an epoch.
        step_seconds: Times of the steps, without the first ones.
    """
    passes = passes_of_a_step(seen, arm, steps_per_epoch)
    timed = seen.with_gradient / max(seen.micro_batches, 1)  # the forward passes of a search come on top
    return Cost(passes, float(np.median(step_seconds)) * passes / timed)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
