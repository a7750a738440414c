"""The model that a command line names, and the examples of its recipe, ready to be measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..tasks.bundled import RECIPE_NAME, bundled_recipes
from ..tasks.errors import RecipeError, first_line
from ..tasks.extra import require_recipes_extra
from ..tasks.flags import load_named
from ..tasks.locate import model_folder
from ..tasks.models import Task
from ..tasks.prepare import build_task
from ..tasks.recipe import Recipe, check_values, override
from ..tasks.sources import Splits
from ..tasks.splits import load_data
from .batches import Batches, prepared_for, some_of

SPLITS = ("train", "eval", "test")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "tokenizer.model")


@dataclasses.dataclass
class Subject:
    """A model with its data.

    Args:
        model: The model, in the type that is computed in, on its device.
        recipe: What its data came from.
        data: The examples of the data sets.
        task: The data sets.
        size: Examples in a batch.
    """

    model: Any
    recipe: Recipe
    data: Splits
    task: Task
    size: int

    def batches(self, split: str, most: int | None, seed: int) -> Batches:
        """At most so many examples (None: all) of the split `train`, `eval` or `test`, drawn by a seed."""
        dataset = getattr(self.task, f"{split}_dataset")
        numbers = some_of(len(dataset), most, seed)
        return Batches(dataset, self.collate, self.size, numbers, prepared_for(self.model))

    def collate(self, examples: list[Any]) -> Any:
        """A batch, as Trainer makes it."""
        from transformers import default_data_collator

        return (self.task.data_collator or default_data_collator)(examples)


def load_subject(
    name: str,
    recipe_name: str | None,
    changes: Sequence[tuple[str, str]] = (),
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    size: int | None = None,
) -> Subject:
    """Load a model and the data to measure it on.

    Args:
        name: A model folder, an adapter's folder (PEFT), or either on the Hub.
        recipe_name: The recipe that names the data. Default None: the `recipe.yaml` beside the model.
        changes: Dotted names and values, as `("data.train_samples", "200")`.
        dtype: What the weights are converted to. Default: float32, whatever they are stored in.
        device: Where to compute. Default None: the first CUDA device, or the CPU.
        size: Examples in a batch. Default None: as in the recipe's evaluation, or 32.

    Raises:
        RecipeError: Anything the user can put right.
    """
    require_recipes_extra("measure")
    recipe = _recipe(name, recipe_name)
    for key, value in changes:
        override(recipe, key, value)
    check_values(recipe)
    data = load_data(recipe)
    task = _task(name, recipe, data)
    _check_labels(name, task.model, data)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        model = task.model.to(where, dtype)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"--device {device}: {first_line(error)}") from error
    size = size or recipe.training.get("per_device_eval_batch_size") or 32
    return Subject(model, recipe, data, task, int(size))


def other_batches(subject: Subject, recipe_name: str, most: int | None, seed: int) -> tuple[str, Batches]:
    """Training examples of another recipe, for the same model: the recipe's name and the batches.

    Raises:
        RecipeError: Its data do not fit the model.
    """
    recipe = load_named(recipe_name)
    if recipe.task != subject.recipe.task:
        raise RecipeError(f"--other_data {recipe_name}: is for {recipe.task}, the model for {subject.recipe.task}")
    data = load_data(recipe)
    classes = subject.model.config.num_labels
    if data.label_names and len(data.label_names) != classes:
        raise RecipeError(
            f"--other_data {recipe_name}: has {len(data.label_names)} classes, but the model tells {classes} apart"
        )
    given = subject.recipe.model
    task = build_task(dataclasses.replace(subject.recipe, data=recipe.data, model=given), data)
    other = Subject(subject.model, recipe, data, task, subject.size)
    return recipe.name, other.batches("train", most, seed)


def load_like(subject: Subject, name: str) -> dict[str, torch.Tensor]:
    """The trainable weights of another model of the same shape, by name.

    Raises:
        RecipeError: It cannot be loaded, or has other weights.
    """
    task = _task(name, dataclasses.replace(subject.recipe), subject.data)
    weights = {key: p.detach() for key, p in task.model.named_parameters() if p.requires_grad}
    own = {key: p for key, p in subject.model.named_parameters() if p.requires_grad}
    other = [key for key in {*weights, *own} if key not in weights or key not in own]
    other += [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if other:
        raise RecipeError(f"--to {name}: has other weights than the model, {sorted(other)[0]} for one")
    return {key: weights[key].to(own[key]) for key in own}


def _recipe(name: str, recipe_name: str | None) -> Recipe:
    if recipe_name is None and not (Path(name) / RECIPE_NAME).is_file() and Path(name).is_dir():
        raise RecipeError(
            f"measure: '{name}' holds no {RECIPE_NAME}, so its data are not known; name a recipe with --data RECIPE"
        )
    if recipe_name is None and not Path(name).exists() and name.count("/") != 1:
        remedy = (
            "train it first" if name in bundled_recipes() else "name the data of a model on the Hub with --data RECIPE"
        )
        raise RecipeError(f"measure: '{name}' is no folder of a model; {remedy}")
    return load_named(recipe_name or name)


def _task(name: str, recipe: Recipe, data: Splits) -> Task:
    """Data sets and model; the recipe's model section is made to name what is measured."""
    from transformers.utils.peft_utils import find_adapter_config_file

    own = recipe.model
    tokenizer = name if _has_tokenizer(name) else own.tokenizer or own.name_or_path
    folder = model_folder(name)
    try:
        adapter = find_adapter_config_file(folder)
    except Exception as error:  # no network, not a model
        raise RecipeError(f"measure: '{name}' cannot be loaded: {first_line(error)}") from error
    base = name if adapter is None else _base_of(name, own.name_or_path)
    section = dataclasses.replace(
        own,
        name_or_path=base,
        tokenizer=tokenizer or base,
        pretrained=True,
        dtype="float32",
        config={},
        revision=None,
        ignore_mismatched_sizes=adapter is not None,
    )
    recipe.model, recipe.peft = section, None  # adapters that are there, and no new ones
    task = build_task(recipe, data)
    if adapter is not None:
        from peft import PeftModel

        try:
            task.model = PeftModel.from_pretrained(task.model, folder, is_trainable=True)
        except Exception as error:
            raise RecipeError(f"measure: the adapter '{name}' cannot be loaded: {first_line(error)}") from error
    return task


def _base_of(name: str, of_recipe: str | None) -> str:
    try:
        from peft import PeftConfig
    except ImportError:
        raise RecipeError(
            f"measure: '{name}' is an adapter, which needs PEFT; install it with `pip install peft`"
        ) from None
    base = PeftConfig.from_pretrained(model_folder(name)).base_model_name_or_path or of_recipe
    if not base:
        raise RecipeError(
            f"measure: the adapter '{name}' does not say which model it is for; set base_model_name_or_path in its "
            "adapter_config.json"
        )
    return base


def _has_tokenizer(name: str) -> bool:
    """Whether a folder holds a tokenizer; of what is not here it is assumed."""
    folder = Path(name)
    return not folder.is_dir() or any((folder / file).exists() for file in _TOKENIZERS)


def _check_labels(name: str, model: Any, data: Splits) -> None:
    """The classes that the model was saved with, if they have names, must be those of the data, in their order."""
    from transformers import AutoConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        stored = AutoConfig.from_pretrained(model_folder(name)).id2label
    except Exception:  # an adapter's folder has none
        return
    names = [stored[index] for index in sorted(stored)]
    if len(names) == len(data.label_names) and names != data.label_names and set(names) == set(data.label_names):
        raise RecipeError(
            f"measure: '{name}' numbers its classes {', '.join(names)}, the data {', '.join(data.label_names)}; name "
            f"the recipe that {type(base).__name__} was trained with"
        )
