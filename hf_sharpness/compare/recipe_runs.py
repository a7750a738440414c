"""One run of a recipe, in this process: train, look at validation data, and in a final run at the test data."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..sharpness_arguments.definitions import shared_arguments
from ..tasks.arguments import training_arguments
from ..tasks.errors import RecipeError, nearest
from ..tasks.prepare import PreparedRun, build_task, prepare
from ..tasks.recipe import Recipe, second_test
from ..tasks.run import train
from ..tasks.splits import load_data
from ..tasks.terminal import Columns
from ..tasks.threads import one_thread_for_small_models
from . import measures
from .arms import Arm, own_arguments, settings_of
from .averaging import Averaging, averaged_weights
from .cost import Cost, Scale, decay_in, measure_costs
from .errors import CompareError
from .observe import Observer, peak_memory, weights_are_finite
from .packing import number, pack, pack_floats
from .plan import Length
from .quiet import quiet_runs
from .subject import Own

Record = dict[str, Any]
"""What is kept of a run, in JSON's types; docs/compare.md describes it."""

_QUIET = {
    "disable_tqdm": True,
    "report_to": "none",
    "push_to_hub": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "steps",
    "logging_steps": 0.05,
    "logging_nan_inf_filter": False,
}
_EVALUATIONS = 0.1
"""Validation points of a final run's curve, as a share of its steps."""


class RecipeSubject:
    """A recipe to compare on.

    Args:
        recipe: The recipe; not changed.
        metric: The primary metric, without `eval_` or `test_`: one of the recipe's, or `loss`. Default None: the
            recipe's first.

    Raises:
        CompareError: The recipe has no such metric.
    """

    mode = "recipe"
    averaging = True

    def __init__(self, recipe: Recipe, metric: str | None = None) -> None:
        if recipe.task == "instruction-tuning":
            raise CompareError(
                f"{recipe.name}: compare judges recipes of classifiers; for instruction tuning write a script, and "
                "give it with --script"
            )
        self.recipe, self.name = recipe, recipe.name
        known = [*recipe.metrics, "loss"]
        self.metric = (metric or known[0]).removeprefix("eval_").removeprefix("test_")
        if self.metric not in known:
            raise CompareError(f"--metric: '{metric}' is none of the recipe's{nearest(self.metric, known)}: {known}")
        self.greater_is_better = self.metric != "loss"

    def own(self) -> Own:
        """What the recipe does by itself."""
        training = self.recipe.training
        arguments = training_arguments(self.recipe)
        length = Length("num_train_epochs", float(arguments.num_train_epochs))
        if arguments.max_steps > 0:
            length = Length("max_steps", float(arguments.max_steps))
        optim = getattr(arguments.optim, "value", arguments.optim)
        base = arguments.base_optim if arguments.uses_sharpness or "base_optim" in training else optim
        sharpness = {name: value for name, value in training.items() if name in own_arguments()}
        return Own(float(arguments.learning_rate), length, base, sharpness)

    def question(self) -> dict[str, Any]:
        """The recipe's content, but for where its files go, and without defaults: a later version may have new ones."""
        recipe = self.recipe
        training = {name: value for name, value in recipe.training.items() if name != "output_dir"}
        content = {
            "task": recipe.task,
            "metrics": recipe.metrics,
            "model": _given(recipe.model),
            "data": _given(recipe.data),
            "training": training,
            "metric": self.metric,
        }
        if recipe.peft is not None:
            content["peft"] = _given(recipe.peft)
        return json.loads(json.dumps(content))

    def facts(self) -> dict[str, str]:
        """Splits and noise."""
        data = load_data(self.recipe)
        sizes = (len(data.train), len(data.eval), len(data.test))
        noise = self.recipe.data.label_noise
        where = "" if self.recipe.data.eval_split is None else f" of the split {self.recipe.data.eval_split}"
        clean = "validation labels are clean" if noise else "labels are those of the data set"
        return {
            "judged on": "the test split",
            "splits": f"{sizes[0]} training, {sizes[1]} validation, {sizes[2]} test examples",
            "label noise": f"{noise:g} of the training labels" if noise else "none",
            "tuned on": f"{sizes[1]} validation examples{where}; {clean}",
        }

    def check(self, arms: Sequence[Arm]) -> None:
        """Make the training arguments of every arm once."""
        kept = {name: value for name, value in self.recipe.training.items() if name not in shared_arguments()}
        for arm in arms:
            for settings in settings_of(arm):
                training = {**kept, **arm.arguments, **settings, "output_dir": tempfile.gettempdir()}
                try:
                    training_arguments(dataclasses.replace(self.recipe, training=training))
                except RecipeError as error:
                    raise CompareError(f"--arms: the arm '{arm.name}': {error}") from error

    def costs(self, arms: Sequence[Arm]) -> tuple[dict[str, Cost], Scale]:
        """Measure the arms' steps in this process."""
        return measure_costs(self.prepared, arms)

    def decay(self, total_steps: int) -> int:
        """The step at which the recipe's learning rate begins its last fall."""
        return decay_in(training_arguments(self.recipe), total_steps)

    def run(self, arguments: Mapping[str, Any], seed: int, final: bool, averages: Sequence[str] = ()) -> Record:
        """Make one run.

        Args:
            arguments: Training arguments that differ from the recipe's.
            seed: Moves initial weights, data order, dropout, label noise and the validation cut; not the test split.
            final: Also look at the test data, which is never read otherwise, and draw a validation curve.
            averages: Averaged weights to look at too, some of `swa` and `ema`.

        Returns:
            The record of the run.

        Raises:
            RecipeError: The recipe or an argument is not valid.
        """
        with tempfile.TemporaryDirectory(prefix="hf-sharpness-") as folder, quiet_runs():
            run = self.prepared({**arguments, "output_dir": folder}, seed, final)
            observer, averaging = Observer(), Averaging(averages)
            run.trainer.add_callback(observer)
            run.trainer.add_callback(averaging)
            self._train(run, observer)
            return self._record(run, observer, averaging, final)

    def prepared(self, arguments: Mapping[str, Any], seed: int, final: bool) -> PreparedRun:
        """A run that has not begun; without the test data where it is not a final one."""
        from transformers import PrinterCallback

        recipe = copy.deepcopy(self.recipe)
        recipe.data.test_seed = recipe.data.seed if recipe.data.test_seed is None else recipe.data.test_seed
        recipe.data.seed = seed
        kept = {
            name: value for name, value in recipe.training.items() if name not in (*shared_arguments(), "data_seed")
        }
        evaluation: dict[str, Any] = {"eval_strategy": "no"}
        if final:
            evaluation = {"eval_strategy": "steps", "eval_steps": _EVALUATIONS}
        pin = {} if torch.accelerator.is_available() else {"dataloader_pin_memory": False}
        recipe.training = {**kept, **_QUIET, **evaluation, **pin, **arguments, "seed": seed}
        recipe.training.pop("resume_from_checkpoint", None)
        run = prepare(recipe)
        if not final:
            run.task.test_dataset = None
        for callback in (PrinterCallback, Columns):
            run.trainer.remove_callback(callback)
        return run

    def _train(self, run: PreparedRun, observer: Observer) -> None:
        try:
            with one_thread_for_small_models(run.task.model, run.arguments.device):
                train(run)
        except (ArithmeticError, ValueError, RuntimeError):
            # A method may refuse to go on with numbers that are none. That is a result.
            if not observer.diverged and weights_are_finite(run.trainer.model):
                raise
            observer.diverged = True
        finally:
            observer.close()

    def _record(self, run: PreparedRun, observer: Observer, averaging: Averaging, final: bool) -> Record:
        trainer = run.trainer
        memory = peak_memory()
        history = trainer.state.log_history
        seconds = observer.step_seconds
        record: Record = {
            "steps": trainer.state.global_step,
            "epochs": round(float(trainer.state.epoch or 0.0), 4),
            "passes": round(observer.passes, 4),
            "seconds": round(sum(seconds), 3),
            "seconds_per_step": float(np.mean(seconds)) if seconds else None,
            "peak_memory": None if memory is None else round(memory, 1),
            "diverged": observer.diverged or not weights_are_finite(trainer.model),
            "curve": [[entry["step"], number(entry["loss"])] for entry in history if "loss" in entry],
            **self._look(run, final),
        }
        key = f"eval_{self.metric}"
        record["eval_curve"] = [[entry["step"], number(entry[key])] for entry in history if key in entry]
        record["averaged"] = {}
        for variant, average in averaging.averages.items():
            with averaged_weights(trainer.model, average):
                record["averaged"][variant] = self._look(run, final)
        return record

    def _look(self, run: PreparedRun, final: bool) -> Record:
        """The metrics of the weights that the model has now."""
        trainer = run.trainer
        record: Record = {"eval": self._scores(trainer.evaluate(run.task.eval_dataset), "eval_")}
        if not final:
            return record
        output = trainer.predict(run.task.test_dataset, metric_key_prefix="test")
        record["test"] = self._scores(output.metrics, "test_")
        logits = _logits(output)
        record["predictions"], record["labels"] = pack(np.argmax(logits, axis=-1)), pack(output.label_ids)
        if self.metric == "loss":
            record["losses"] = pack_floats(_losses(logits, output.label_ids))
        record["measures"] = self._measures(run, logits, output.label_ids)
        return record

    def _measures(self, run: PreparedRun, logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
        trainer, dataset = run.trainer, run.task.test_dataset

        def score(data: Any) -> float:
            value = self._scores(trainer.predict(data, metric_key_prefix="test").metrics, "test_")[self.metric]
            return float("nan") if value is None else value

        found: dict[str, float] = measures.likelihood_and_calibration(logits, labels)
        for bits in (8, 4):
            with measures.rounded_weights(trainer.model, bits):
                found[f"at_{bits}_bits"] = score(dataset)
        if self.recipe.task == "image-classification":
            found["under_noise"] = score(measures.NoisyImages(dataset))
        if self.recipe.data.second_test is not None:
            found["on_second_test"] = score(self._second_dataset(run))
        found.update(measures.flatness(trainer))
        found["generalization_gap"] = found["nll"] - found["train_loss"]
        return {name: number(value) for name, value in found.items()}

    def _second_dataset(self, run: PreparedRun) -> Any:
        """The test split of the recipe's second data set, made to fit the model."""
        other = second_test(run.recipe)
        config = run.trainer.model.config
        if other.model.name_or_path is None:  # else the size of images would be read off the second data set
            fitting = {name: getattr(config, name) for name in ("image_size", "num_channels") if hasattr(config, name)}
            other.model = dataclasses.replace(other.model, config={**other.model.config, **fitting})
        data = load_data(other)
        if len(data.label_names) != config.num_labels:
            raise CompareError(
                f"data.second_test: {other.data.source} has {len(data.label_names)} classes and the recipe's data "
                f"{config.num_labels}: name a data set with the same classes"
            )
        return build_task(other, data).test_dataset

    @staticmethod
    def _scores(metrics: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
        timing = ("runtime", "per_second", "model_preparation_time")
        return {
            name.removeprefix(prefix): number(value)
            for name, value in metrics.items()
            if name.startswith(prefix) and not any(word in name for word in timing)
        }


def _given(section: Any) -> dict[str, Any]:
    """What a section of the recipe says, without defaults."""
    return {
        item.name: value
        for item in dataclasses.fields(section)
        if (value := getattr(section, item.name))
        != (item.default if item.default_factory is dataclasses.MISSING else item.default_factory())
    }


def _logits(output: Any) -> np.ndarray:
    predictions = output.predictions
    return predictions[0] if isinstance(predictions, tuple) else predictions


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross-entropy of each example."""
    scores = torch.from_numpy(np.asarray(logits, dtype=np.float32))
    return torch.nn.functional.cross_entropy(scores, torch.from_numpy(np.asarray(labels)), reduction="none").numpy()
