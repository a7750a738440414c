"""One run: recipe in, fine-tuned model, metrics, curves and the resolved recipe out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import SHARED
from ..engine.optimizers import is_adaptive
from .curves import plot_curves
from .errors import RecipeError, first_line
from .image_classification import build_image_task
from .metrics import build_compute_metrics
from .models import Task
from .recipe import Recipe, check_training, check_values
from .sequence_classification import build_text_task
from .shared import shareable_training
from .sources import Data
from .splits import load_data

if TYPE_CHECKING:
    from ..arguments import TrainingArguments
    from ..trainer import Trainer


@dataclasses.dataclass
class PreparedRun:
    """A run whose data, model and Trainer are made, and whose training has not begun.

    Args:
        recipe: What it was made from.
        arguments: The training arguments.
        data: The three splits.
        task: The model and its data sets.
        trainer: The Trainer of both.
        checkpoint: The checkpoint folder to resume from. Default None: start anew.
    """

    recipe: Recipe
    arguments: TrainingArguments
    data: Data
    task: Task
    trainer: Trainer
    checkpoint: str | None = None

    @property
    def output(self) -> Path:
        """The folder it writes into."""
        return Path(self.arguments.output_dir)

    @property
    def title(self) -> str:
        """Its recipe, method and hyper-parameters in one line."""
        return title(self.recipe, self.arguments)


def run_recipe(recipe: Recipe) -> dict[str, float]:
    """Train, evaluate and test as `recipe` says; return the test metrics, keyed `test_...`.

    Writes into `training.output_dir` (default `outputs/<name of the recipe file>`): the model and its tokenizer or
    image processor, `recipe.yaml`, `trainer_state.json`, `train_results.json`, `eval_results.json`,
    `test_results.json`, `all_results.json` and `curves.png`.

    Raises:
        RecipeError: Anything the user can put right.
    """
    run = prepare(recipe)
    trainer = run.trainer
    main_process = trainer.is_world_process_zero()
    if main_process:
        sizes = ", ".join(f"{len(getattr(run.data, name))} {word}" for name, word in _SPLITS.items())
        print(f"{run.title}: {sizes} examples, {run.task.model.num_parameters():,} parameters", flush=True)
    trainer.save_metrics("train", train(run))
    save(run)
    trainer.save_metrics("eval", evaluate(run))
    test_metrics = test(run)
    trainer.save_metrics("test", test_metrics)
    if main_process:
        try:
            plot_curves(trainer.state.log_history, run.output / "curves.png", run.title.replace(": ", "\n", 1))
        except RecipeError as error:  # a missing picture must not cost a finished run
            print(f"warning: {error}", file=sys.stderr)
        print(metrics_table(test_metrics, run.output))
    if run.arguments.push_to_hub:
        trainer.push_to_hub()
    return test_metrics


_SPLITS = {"train": "training", "eval": "evaluation", "test": "test"}


def prepare(recipe: Recipe) -> PreparedRun:
    """Check `recipe`, read its data and make model and Trainer. Nothing is trained or written yet.

    Raises:
        RecipeError: Anything the user can put right.
    """
    from transformers import set_seed

    from hf_sharpness import Trainer, TrainingArguments

    check_values(recipe)
    check_training(recipe.training, TrainingArguments, recipe.origin)
    recipe.training.setdefault("output_dir", str(Path("outputs") / recipe.name))
    try:
        arguments = TrainingArguments(**recipe.training)
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"{recipe.origin}: training: {first_line(error)}") from error
    checkpoint = find_checkpoint(arguments)
    compute_metrics = build_compute_metrics(recipe.metrics)

    set_seed(arguments.seed)  # Trainer seeds too, but only after the model has drawn its weights
    with arguments.main_process_first(desc="reading the data"):
        data = load_data(recipe)
    build = build_image_task if recipe.task == "image-classification" else build_text_task
    task = build(recipe, data)
    try:
        trainer = Trainer(
            model=task.model,
            args=arguments,
            data_collator=task.data_collator,
            train_dataset=task.train_dataset,
            eval_dataset=task.eval_dataset,
            processing_class=task.processing_class,
            compute_metrics=compute_metrics,
        )
    except (ValueError, ImportError) as error:
        raise RecipeError(f"{recipe.origin}: training: {first_line(error)}") from error
    return PreparedRun(recipe, arguments, data, task, trainer, checkpoint)


def train(run: PreparedRun) -> dict[str, float]:
    """Train, or go on from the run's checkpoint; return the training metrics. The test split is not looked at."""
    with own_parameter_names(run.task.model):
        return run.trainer.train(resume_from_checkpoint=run.checkpoint).metrics


def save(run: PreparedRun) -> None:
    """Write the model with all that is needed to load it, the trainer's state and the resolved recipe."""
    run.trainer.save_model()
    run.trainer.save_state()
    if not run.trainer.is_world_process_zero():
        return
    # The file goes to the Hub with the model: no token in it, and nothing a shared recipe may not set.
    given = {name: value for name, value in run.arguments.to_dict().items() if name in SHARED}
    shared = dataclasses.replace(run.recipe, training=shareable_training({**run.recipe.training, **given}))
    shared.save(run.output / "recipe.yaml")
    for name, content in run.task.save_with_model.items():
        (run.output / name).write_text(content, encoding="utf-8")


def evaluate(run: PreparedRun) -> dict[str, float]:
    """The metrics of the evaluation split, keyed `eval_...`."""
    return run.trainer.evaluate()


def test(run: PreparedRun) -> dict[str, float]:
    """The metrics of the test split, keyed `test_...`: for the end, once every decision has been made."""
    return run.trainer.predict(run.task.test_dataset, metric_key_prefix="test").metrics


@contextlib.contextmanager
def own_parameter_names(model: Any) -> Iterator[None]:
    """Inside, `model.save_pretrained` keeps the names the model gives its parameters.

    Trainer resumes, and loads the best model, by those names. By default transformers 5 saves under the names a
    published checkpoint has, ViT's for instance, so that Trainer would find none of its weights and go on with
    whatever the model holds (transformers issue 43701).
    """
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        del model.save_pretrained  # the class's own is visible again


def find_checkpoint(arguments: Any) -> str | None:
    """Return the checkpoint folder `--resume_from_checkpoint PATH|true` means, or None.

    Raises:
        RecipeError: The folder is no checkpoint, or `true` was given and the output folder holds none.
    """
    from transformers.trainer_utils import get_last_checkpoint

    wanted = arguments.resume_from_checkpoint
    if wanted is None or wanted.lower() == "false":
        return None
    if wanted.lower() == "true":
        folder = Path(arguments.output_dir)
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise RecipeError(
                f"--resume_from_checkpoint true: '{folder}' holds no checkpoint; leave the flag out to start anew"
            )
        return last
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise RecipeError(f"--resume_from_checkpoint: '{wanted}' is no checkpoint folder (no trainer_state.json in it)")
    return wanted


def title(recipe: Recipe, arguments: Any) -> str:
    """Name the run by its recipe, its method, rho, and the hyper-parameters that are not the method's defaults."""
    name = recipe.name
    method = arguments.method()
    if method is None:
        return f"{name}: {getattr(arguments.optim, 'value', arguments.optim)}"
    method = method.resolved(adaptive_base=is_adaptive(arguments.base_optim))
    shown = [
        f"{item.name} {value}"
        for item in dataclasses.fields(method)
        if (value := getattr(method, item.name)) != item.default or item.name == "rho"
    ]
    return f"{name}: {method.name.upper()} ({', '.join(shown)}) on {arguments.base_optim}"


def metrics_table(metrics: dict[str, float], output: Path) -> str:
    """Lay out the test metrics, scores first, as plain text."""
    timing = ("runtime", "per_second")
    scores = {key: value for key, value in metrics.items() if not any(word in key for word in timing)}
    width = max(len(key) for key in scores)
    lines = [f"  {key:<{width}}  {value:.4f}" for key, value in sorted(scores.items())]
    return "\n".join(["", "test metrics", *lines, f"  written to {output}"])
