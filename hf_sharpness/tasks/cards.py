"""The model card of a recipe's run: what was trained, on which data, how, and what it reached on the test split."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

from .. import __version__
from ..trainer import LOGGED
from ..training import card
from .metrics import scores
from .prepare import PreparedRun, method_in_words
from .sources import SOURCES

_PIPELINES = {
    "image-classification": "image-classification",
    "sequence-classification": "text-classification",
    "instruction-tuning": "text-generation",
}
"""A recipe's task -> the Hub's name of it."""
_TYPES = {"macro_f1": "f1"}
"""A metric of a recipe -> the Hub's name of it, where that is another."""


def write_card(run: PreparedRun, metrics: dict[str, dict[str, float]]) -> Path:
    """Write the README.md of the run's folder, whatever optimizer it had.

    Args:
        run: A finished run, whose model, recipe and curves lie in its folder.
        metrics: By split: train, eval, test.

    Returns:
        The card.
    """
    path = run.output / "README.md"
    reached = {split: scores(metrics[split], split) for split in ("eval", "test")}
    text = "\n\n".join(
        [
            f"---\n{_metadata(run, reached['test']).to_yaml()}\n---",
            f"# {run.recipe.name}",
            f"{_model(run)} {_data(run)}",
            _results(reached),
            "![Loss, sharpness and evaluation metrics over the training](curves.png)",
            f"## Training\n\n{_training(run)}",
            f"### Framework versions\n\n{_versions()}\n",
        ]
    )
    path.write_text(text, encoding="utf-8")
    if run.arguments.uses_sharpness:
        trainer = run.trainer
        card.complete(
            path,
            run.arguments,
            trainer.optimizer,
            trainer.state.log_history,
            LOGGED,
            getattr(trainer, "hub_model_id", None),
            card.steps_of(trainer),
        )
    return path


def _base_model(run: PreparedRun) -> str | None:
    """The Hub id of the model that was fine-tuned; None for one from scratch, or from elsewhere."""
    model = run.recipe.model
    name = model.name_or_path
    if name is None or not model.pretrained or name.startswith("builtin:") or os.path.exists(name):
        return None
    return name


def _dataset(run: PreparedRun) -> tuple[str, str | None]:
    """The data set in words, and its Hub id as far as it has one. Names of local files stay on this machine."""
    source = run.recipe.data.source
    if source in SOURCES:
        return SOURCES[source].about, None
    if "/" not in source or os.path.exists(source):
        return f"local files ({source})" if "/" not in source else "local files", None
    return f"[{source}](https://huggingface.co/datasets/{source})", source


def _metadata(run: PreparedRun, reached: dict[str, float]) -> ModelCardData:
    words, dataset = _dataset(run)
    pipeline = _PIPELINES[run.recipe.task]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=dataset or run.recipe.data.source.replace("/", "-"),
            dataset_name=dataset or words,
            dataset_split="test",
            metric_type=_TYPES.get(name, name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in reached.items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        base_model=_base_model(run),
        datasets=None if dataset is None else [dataset],
        metrics=[_TYPES.get(name, name) for name in reached if name != "loss"],
        tags=["hf_sharpness", "generated_from_trainer"],
        model_name=run.recipe.name,
        eval_results=results,
    )


def _model(run: PreparedRun) -> str:
    model, section = run.task.model, run.recipe.model
    what = f"A `{type(model).__name__}` with {model.num_parameters():,} parameters"
    base = _base_model(run)
    if base is not None:
        return f"{what}, fine-tuned from [{base}](https://huggingface.co/{base})."
    if section.name_or_path is None or not section.pretrained:
        return f"{what}, trained from scratch."
    name = section.name_or_path
    return f"{what}, fine-tuned from {'`' + name + '`' if name.startswith('builtin:') else 'a local model'}."


def _data(run: PreparedRun) -> str:
    section, data = run.recipe.data, run.data
    classes = f", {len(data.label_names)} classes" if data.label_names else ""
    noise = f"; {section.label_noise:.0%} of the training labels were made wrong" if section.label_noise else ""
    return (
        f"Data: {_dataset(run)[0]}{classes}, {len(data.train):,} examples for training, "
        f"{len(data.eval):,} for evaluation and {len(data.test):,} for the test (`data.seed` {section.seed}){noise}."
    )


def _results(reached: dict[str, dict[str, float]]) -> str:
    rows = [f"| {name} | {value:.4f} | {reached['eval'][name]:.4f} |" for name, value in reached["test"].items()]
    return "\n".join(["| metric | test | evaluation |", "| --- | --- | --- |", *rows])


def _training(run: PreparedRun) -> str:
    arguments = run.arguments
    threads = torch.get_num_threads()
    device = f"CPU, {threads} thread{'s' if threads > 1 else ''}" if arguments.device.type == "cpu" else "GPU"
    schedule = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    entries = {
        "optimizer": method_in_words(arguments),
        "learning rate": f"{arguments.learning_rate:g}, {schedule}",
        "batch size": str(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size),
        "steps": f"{run.trainer.state.global_step:,} ({run.trainer.state.epoch or 0:g} epochs)",
        "weight decay": f"{arguments.weight_decay:g}",
        "seed": str(arguments.seed),
        "device": device,
    }
    repo = getattr(run.trainer, "hub_model_id", None)  # where it is pushed to
    again = "All of it is in `recipe.yaml`. This makes the model again:"
    if repo is None:
        again = (
            "All of it is in `recipe.yaml`. In a copy of this folder, this makes the model again; look at the recipe "
            "first, as a file of your own it may name any file and run metric scripts:"
        )
    command = f"```bash\nhf-sharpness train {repo or 'recipe.yaml'} --output_dir again\n```"
    return "\n".join([*(f"- {name}: {value}" for name, value in entries.items()), "", again, "", command])


def _versions() -> str:
    versions = {
        "hf_sharpness": __version__,
        "Transformers": transformers.__version__,
        "PyTorch": torch.__version__,
        "Datasets": importlib.metadata.version("datasets"),
        "Python": platform.python_version(),
    }
    return "\n".join(f"- {name} {version}" for name, version in versions.items())
