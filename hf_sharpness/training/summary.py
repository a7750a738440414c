"""Two lines for the user: what a training runs, at its start, and what its steps were, at its end."""

from __future__ import annotations

import contextlib
from typing import Any

import transformers

from ..engine import Engine
from ..engine.fraction import cost_of_a_part
from ..engine.phase import Phase
from .averages import Averages
from .base_choice import chosen
from .notices import say


class Summary:
    """Counts a training's steps and passes.

    Args:
        trainer: the Trainer.
        engine: its engine, at the start of the training.
    """

    def __init__(self, trainer: Any, engine: Engine) -> None:
        self.trainer = trainer
        self.engine = engine
        self.base = _base(trainer, engine)
        self.micro_batches = self.steps = self.sharp = self.skipped = 0
        self.sharpness = Averages(("sharpness",))
        self.measured = engine.metrics

    def start(self) -> str:
        """What runs: ``WSAM: rho 0.05, gamma 0.6 coupled, on adamw_torch; 2 passes a step``."""
        method, options = self.engine.method, self.engine.phase.options
        scoped = "" if options.scope == "global" else f", scope {options.scope}"
        scheduled = "" if options.rho_schedule == "constant" else f", rho schedule {options.rho_schedule}"
        in_part = "" if options.fraction == 1 else f", fraction {options.fraction:g}"
        perturbed, of = self.engine.targets.share
        targets = "" if options.target_modules is None else f", perturbing {options.target_modules}"
        targets += f" ({perturbed:,} of {of:,} weights)" if targets else ""
        chosen = f"{method.described}{scheduled}{scoped}{in_part}{targets}"
        cost = _cost(self.engine, self.trainer.args.gradient_accumulation_steps)
        return f"{method.name.upper()}: {chosen}, on {self.base}; {cost}"

    def micro_batch(self) -> None:
        """The loop has gone through another micro-batch."""
        self.micro_batches += 1

    def step(self) -> None:
        """An optimizer step was made, or skipped by a loss scaler."""
        self.steps += 1
        self.skipped += bool(getattr(self.trainer.accelerator, "optimizer_step_was_skipped", False))
        metrics, before, self.measured = self.engine.metrics, self.measured, self.engine.metrics
        if metrics is not before and "perturbed_loss" in metrics:
            self.sharp += 1
            self.sharpness.add(metrics)

    def end(self, state: transformers.TrainerState) -> None:
        """Say what happened. All ranks call it."""
        means = self.sharpness.take(self.trainer._sharpness_sum_over_ranks, self.trainer.args.device)
        if not self.steps or not state.is_world_process_zero:
            return
        progress, phase = self.engine.course.progress, self.engine.phase
        passes = f"{self.micro_batches + progress.repeated:.10g} forward and backward passes"
        if progress.probed:
            passes += f" and {progress.probed:.10g} forward passes"
        say(
            f"{self.engine.method.name.upper()}: {self.sharp} of {self.steps} optimizer steps were sharpness-aware"
            + ("" if self.sharp or phase.is_whole else f" ({_which(phase)} would have been)")
            + (f", {self.skipped} were skipped by the loss scaler" if self.skipped else "")
            + (f"; mean sharpness {means['sharpness']:.4g}" if means else "")
            + f"; {passes}, where {self.base} alone makes {self.micro_batches}"
        )


def _cost(engine: Engine, micro_batches: int) -> str:
    """What a step of so many micro-batches costs."""
    method, phase = engine.method, engine.phase
    if method.is_plain:
        return "1 pass a step: the base optimizer's own"
    replay = cost_of_a_part(phase.options.fraction, micro_batches)
    passes = f"{1 + method.replays * replay:.4g} passes" if not method.decides_replays else "1 pass"
    more = ", and further ones as each step decides" if method.decides_replays else ""
    if phase.is_whole:
        return f"{passes} a step{more}"
    planned, total = phase.planned, phase.progress.total_steps
    return f"{passes} a step{more}, in {planned} of {total} optimizer steps ({_which(phase)}); 1 pass in the others"


def _which(phase: Phase) -> str:
    """Which steps are sharpness-aware, numbered from 1 as in the logs: ``from step 51 on``."""
    first = f"from step {phase.first + 1}"
    return f"{first} on" if phase.end is None else f"{first} to step {phase.end}"


def _base(trainer: Any, engine: Engine) -> str:
    """The base optimizer as the arguments call it; by its class where the user handed the Trainer another."""
    args = trainer.args
    if not trainer.is_deepspeed_enabled and trainer.optimizer_cls_and_kwargs is None:
        with contextlib.suppress(ImportError, ValueError):
            # Not as the Trainer's own class says it, which may make something in saying so.
            stock, _ = chosen(transformers.Trainer.get_optimizer_cls_and_kwargs, args, trainer.model)
            if type(engine.optimizer) is not stock:
                return type(engine.optimizer).__name__
        return args.base_optim
    return args.base_optim if trainer.is_deepspeed_enabled else type(engine.optimizer).__name__
