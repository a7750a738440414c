"""Run a script and write down what `compare` wants to know of it: the program that a script's run is started with.

    python -m hf_sharpness.run --set optim=sam -m hf_sharpness.compare.probe SCRIPT ARGUMENTS

The script is left as it is. Its Trainer is watched where it trains and where it evaluates, and evaluates once more with
averaged or rounded weights where that is asked for, in HF_SHARPNESS_PROBE (JSON, see `Wish`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from ..engine.decay import decay_step
from . import measures
from .averaging import Averaging, averaged_weights
from .observe import Observer, peak_memory, weights_are_finite
from .packing import number, pack

WISH = "HF_SHARPNESS_PROBE"
TEST_PREFIXES = ("test", "predict")


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is wanted of a run.

    Args:
        path: The file to write the record to.
        averages: Averaged weights to look at, some of `swa` and `ema`.
        measure: Whether to look at calibration and rounded weights too.
        stop_after: Stop the training after so many steps. Default None: at its own end.
    """

    path: str
    averages: tuple[str, ...] = ()
    measure: bool = False
    stop_after: int | None = None


class _Stop(transformers.TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.steps
        return control


class Probe:
    """Watches the Trainers of this process; the last one that trained counts."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.record: dict[str, Any] = {}
        self.observer, self.averaging = Observer(), Averaging(())

    def install(self, trainer_class: Any) -> None:
        """Wrap `train` and `evaluation_loop`, which every Trainer of transformers goes through."""
        train, loop = trainer_class.train, trainer_class.evaluation_loop

        @functools.wraps(train)
        def watched_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self._begin(trainer)
            try:
                return train(trainer, *args, **kwargs)
            finally:
                self._end(trainer)

        @functools.wraps(loop)
        def watched_loop(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            output = loop(trainer, *args, **kwargs)
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            if not trainer.is_in_train or trainer.state.global_step >= trainer.state.max_steps:
                self._look(trainer, output, prefix, lambda: loop(trainer, *args, **kwargs))
            return output

        trainer_class.train, trainer_class.evaluation_loop = watched_train, watched_loop

    def _begin(self, trainer: Any) -> None:
        args = trainer.args
        self.observer, self.averaging = Observer(), Averaging(self.wish.averages)
        self.record = {
            "own": {
                "learning_rate": args.learning_rate,
                "max_steps": args.max_steps,
                "num_train_epochs": args.num_train_epochs,
                "optim": getattr(args.optim, "value", args.optim),
                "base_optim": getattr(args, "base_optim", None),
            },
            "averaged": {variant: {} for variant in self.wish.averages},
        }
        for callback in (self.observer, self.averaging):
            trainer.add_callback(callback)
        if self.wish.stop_after is not None:
            trainer.add_callback(_Stop(self.wish.stop_after))

    def _end(self, trainer: Any) -> None:
        observer, history = self.observer, trainer.state.log_history
        observer.close()
        seconds = observer.step_seconds
        memory = peak_memory()
        self.record.update(
            steps=trainer.state.global_step,
            epochs=round(float(trainer.state.epoch or 0.0), 4),
            passes=round(observer.passes, 4),
            with_gradient=observer.with_gradient,
            forward_only=observer.forward_only,
            micro_batches=observer.micro_batches,
            step_seconds=seconds,
            seconds=round(sum(seconds), 3),
            seconds_per_step=float(np.mean(seconds)) if seconds else None,
            peak_memory=None if memory is None else round(memory, 1),
            diverged=observer.diverged or not weights_are_finite(trainer.model),
            curve=[[entry["step"], number(entry["loss"])] for entry in history if "loss" in entry],
            evaluations=[entry for entry in history if any(key.startswith("eval_") for key in entry)],
            steps_per_epoch=_steps_per_epoch(trainer),
        )
        self.record["own"].update(_decay(trainer))

    def _look(self, trainer: Any, output: Any, prefix: str, again: Any) -> None:
        """Write down one evaluation, and repeat it with other weights."""
        self.record.setdefault("looks", {})[prefix] = _look(output, prefix, self.wish.measure)
        if self.wish.measure:
            found = self.record["looks"][prefix].setdefault("measures", {})
            for bits in (8, 4):
                with measures.rounded_weights(trainer.model, bits):
                    found[f"at_{bits}_bits"] = _scores(again(), prefix)
        for variant, average in self.averaging.averages.items():
            with averaged_weights(trainer.model, average):
                self.record["averaged"][variant][prefix] = _look(again(), prefix, self.wish.measure)


def _look(output: Any, prefix: str, measure: bool) -> dict[str, Any]:
    look: dict[str, Any] = {"scores": _scores(output, prefix)}
    logits, labels = _classes(output)
    if logits is not None and labels is not None:
        look["predictions"], look["labels"] = pack(logits.argmax(-1)), pack(labels)
        if measure:
            found = measures.likelihood_and_calibration(logits, labels)
            look["measures"] = {name: number(value) for name, value in found.items()}
    return look


def _scores(output: Any, prefix: str) -> dict[str, float | None]:
    metrics = output.metrics or {}
    return {
        name.removeprefix(f"{prefix}_"): number(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float, np.number))
    }


def _classes(output: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Logits and class ids, where the evaluation is one of a classifier."""
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    labels = output.label_ids
    fits = isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray)
    if not fits or logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind != "i":
        return None, None
    if logits.shape[1] < 2 or len(labels) == 0 or labels.min() < 0 or labels.max() >= logits.shape[1]:
        return None, None
    return logits, labels


def _steps_per_epoch(trainer: Any) -> float | None:
    try:
        return len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps
    except (TypeError, ValueError):  # a stream has no length
        return None


def _decay(trainer: Any) -> dict[str, Any]:
    """Which part of the training lies before the learning rate's last fall, or why that is not known."""
    total = trainer.state.max_steps
    try:
        return {"decay": decay_step(trainer.lr_scheduler, total) / total}
    except ValueError as error:
        return {"decay": None, "no_decay": str(error)}


def main() -> None:
    """Run the script of the command line under observation."""
    wish = Wish(**json.loads(os.environ.pop(WISH)))
    began = time.process_time()
    probe = Probe(dataclasses.replace(wish, averages=tuple(wish.averages)))
    probe.install(transformers.Trainer)
    script, *arguments = sys.argv[1:]
    sys.argv[:] = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        probe.record["processor_seconds"] = time.process_time() - began
        partial = Path(f"{wish.path}.partial")
        partial.write_text(json.dumps(probe.record), encoding="utf-8")
        partial.replace(wish.path)


if __name__ == "__main__":
    main()
