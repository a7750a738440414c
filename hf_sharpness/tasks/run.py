"""One run: recipe in, fine-tuned model, metrics, curves, model card and the resolved recipe out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

from ..sharpness_arguments.definitions import shared_arguments
from .cards import write_card
from .curves import plot_curves
from .folders import clear
from .metrics import scores
from .prepare import PreparedRun, prepare
from .recipe import Recipe
from .report import header, summary
from .shared import shareable_training
from .threads import one_thread_for_small_models


def run_recipe(recipe: Recipe, overwrite: bool = False, one_thread_if_small: bool = False) -> dict[str, float]:
    """Train, evaluate and test as `recipe` says; return the test metrics, keyed `test_...`.

    Writes into `training.output_dir` (default `outputs/<recipe>-<method>-seed<seed>`): the model and its tokenizer or
    image processor, `recipe.yaml`, `trainer_state.json`, `train_results.json`, `eval_results.json`,
    `test_results.json`, `all_results.json`, `curves.png` and `README.md` (the model card).

    Args:
        recipe: What to run.
        overwrite: Replace the run that the folder holds. Default False: that is an error.
        one_thread_if_small: Train a small model on one CPU thread, unless the environment says how many. Default
            False: on as many as torch uses.

    Raises:
        RecipeError: Anything the user can put right.
    """
    run = prepare(recipe, overwrite)
    trainer = run.trainer
    with contextlib.ExitStack() as stack:
        limited = one_thread_if_small and stack.enter_context(
            one_thread_for_small_models(run.task.model, run.arguments.device)
        )
        if trainer.is_world_process_zero():
            print(header(run, limited), flush=True)
        begin = time.process_time()
        metrics = {"train": train(run)}
        processor_time = time.process_time() - begin
        history = list(trainer.state.log_history)
        save(run)
        metrics |= {"eval": evaluate(run), "test": test(run)}
        for split, values in metrics.items():
            trainer.save_metrics(split, values)
        if trainer.is_world_process_zero():
            method = run.arguments.method()
            plot_curves(
                history,
                run.output / "curves.png",
                run.title.replace(": ", "\n", 1),
                measured=() if method is None else method.metrics,
                test=scores(metrics["test"], "test"),
            )
            write_card(run, metrics)
            print(summary(run, metrics, processor_time), flush=True)
    if run.arguments.push_to_hub:
        trainer.create_model_card = lambda **about: None  # there is one, which says more
        trainer.push_to_hub()
    return metrics["test"]


def train(run: PreparedRun) -> dict[str, float]:
    """Train, or go on from the run's checkpoint; return the training metrics. The test split is not looked at."""
    if run.trainer.is_world_process_zero():
        clear(run.output, checkpoints=run.checkpoint is None)
    with own_parameter_names(run.task.model):
        return run.trainer.train(resume_from_checkpoint=run.checkpoint).metrics


def save(run: PreparedRun) -> None:
    """Write the model with all that is needed to load it, the trainer's state and the resolved recipe."""
    run.trainer.save_model()
    run.trainer.save_state()
    if not run.trainer.is_world_process_zero():
        return
    # The file goes to the Hub with the model: no token in it, and nothing a shared recipe may not set.
    others = {key: value for key, value in run.recipe.training.items() if key not in shared_arguments()}
    training = shareable_training({**others, **run.arguments.shared_values()})
    shared = dataclasses.replace(run.recipe, training=training)
    shared.save(run.output / "recipe.yaml")
    for name, content in run.task.save_with_model.items():
        (run.output / name).write_text(content, encoding="utf-8")


def evaluate(run: PreparedRun) -> dict[str, float]:
    """The metrics of the evaluation split, keyed `eval_...`."""
    return run.trainer.evaluate()


def test(run: PreparedRun) -> dict[str, float]:
    """The metrics of the test split, keyed `test_...`: for the end, once every decision has been made."""
    return run.trainer.predict(run.task.test_dataset, metric_key_prefix="test").metrics or {}


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
