"""The first part of a run: from a recipe to data, model and Trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, set_seed

from ..arguments import TrainingArguments
from ..engine.targets import named_by
from ..methods.options import PREFIX
from ..trainer import Trainer
from .adapters import with_adapters
from .arguments import REFUSALS, refused, training_arguments, try_optimization
from .extra import require_recipes_extra
from .folders import check_free, find_checkpoint
from .image_classification import build_image_task
from .instruction_tuning import build_instruction_task
from .metrics import build_compute_metrics, check_best
from .models import Task
from .recipe import Recipe, check_values
from .sequence_classification import build_text_task
from .sources import Splits
from .splits import load_data
from .terminal import Columns, is_terminal


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
    data: Splits
    task: Task
    trainer: Any
    checkpoint: str | None = None

    @property
    def output(self) -> Path:
        """The folder it writes into."""
        return Path(self.arguments.output_dir or ".")

    @property
    def title(self) -> str:
        """Its recipe, method and hyper-parameters in one line."""
        return f"{self.recipe.name}: {method_in_words(self.arguments)}"


def prepare(recipe: Recipe, overwrite: bool = False) -> PreparedRun:
    """Check `recipe`, read its data and make model and Trainer. Nothing is trained or written yet.

    Args:
        recipe: What to run.
        overwrite: Whether the folder may hold another run, which `train` then removes. Default False.

    Raises:
        RecipeError: Anything the user can put right.
    """
    require_recipes_extra("a recipe")
    check_values(recipe)
    arguments = training_arguments(recipe)
    checkpoint = find_checkpoint(arguments)
    if arguments.process_index == 0 and not overwrite:
        check_free(Path(arguments.output_dir or "."), checkpoint)
    compute_metrics = build_compute_metrics(recipe.metrics) if recipe.metrics else None
    if compute_metrics is None:  # else all logits would be gathered for nothing
        arguments.prediction_loss_only = True
    check_best(arguments, recipe.metrics)

    set_seed(arguments.seed)  # Trainer seeds too, but only after the model has drawn its weights
    with arguments.main_process_first(desc="reading the data"):
        data = load_data(recipe)
    task = build_task(recipe, data)
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
        try_optimization(arguments, task.model)
        _check_targets(arguments, task.model)
    except REFUSALS as error:
        raise refused(recipe, error, task.model) from error
    if is_terminal():
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(Columns(recipe.metrics, arguments.uses_sharpness, bar=not arguments.disable_tqdm))
    return PreparedRun(recipe, arguments, data, task, trainer, checkpoint)


def _check_targets(arguments: TrainingArguments, model: Any) -> None:
    if arguments.uses_sharpness and arguments.sam_target_modules is not None:
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        named_by(arguments.sam_target_modules, model, trained, f"{PREFIX}_")


def build_task(recipe: Recipe, data: Splits) -> Task:
    """Make the model and the data sets of a recipe whose data have been read.

    Raises:
        RecipeError: The model cannot be built or loaded, or does not fit the data.
    """
    builders = {"image-classification": build_image_task, "instruction-tuning": build_instruction_task}
    task = builders.get(recipe.task, build_text_task)(recipe, data)
    task.model = with_adapters(recipe, task.model)
    return task


def method_in_words(arguments: Any) -> str:
    """The method with its hyper-parameters, and the base optimizer."""
    method = arguments.method()
    if method is None:
        return str(getattr(arguments.optim, "value", arguments.optim))
    described = method.resolved(arguments.base_kind()).described
    return f"{method.name.upper()} ({described}{arguments.step_options().described}) on {arguments.base_optim}"
