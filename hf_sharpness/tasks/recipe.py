"""A recipe: the YAML file that describes one fine-tuning run, and its overrides.

task: image-classification        # or sequence-classification, instruction-tuning
description: one line             # shown by `hf-sharpness recipes`
metrics: [accuracy, macro_f1]     # or the path of a local `evaluate` metric script
model: {...}                      # ModelSection
data: {...}                       # DataSection
peft: {...}                       # PeftSection; without it, all weights are trained
training: {...}                   # any field of hf_sharpness.TrainingArguments
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..arguments import SharpnessArguments
from ..sharing.values import short
from .bundled import RECIPE_NAME
from .errors import RecipeError, first_line
from .schema import build, check, unknown
from .sections import STRICT, DataSection, ModelSection, PeftSection, Tasks
from .yaml12 import dump_yaml, parse_yaml

_LARGEST = 2.0**53
_TOP_LEVEL = ("task", "description", "metrics", "model", "data", "peft", "training")


@dataclass(config=STRICT)
class Recipe:
    """One checked recipe."""

    task: Tasks
    """What the model learns."""
    model: ModelSection
    """Which model to train."""
    data: DataSection
    """On which examples."""
    training: dict[str, Any]
    """Keyword arguments of `hf_sharpness.TrainingArguments`: see `check_training`."""
    metrics: list[str] = Field(default_factory=lambda: ["accuracy", "macro_f1"])
    """`accuracy`, `macro_f1`, or paths of local metric scripts for `evaluate`; none for instruction tuning."""
    peft: PeftSection | None = None
    """Adapters to train in the place of the model's weights. Default None: the weights themselves."""
    description: str = ""
    """One line that `hf-sharpness recipes` shows."""
    origin: str = "recipe"
    """How errors name it: its file, or its repo on the Hub."""
    training_of_file: dict[str, Any] | None = None
    """`training` as the file has it, where the command line changed it: tells whose an error is."""
    shared: bool = False
    """Whether it is somebody else's: then its model must fit this machine."""
    data_from_hub: bool = False
    """Whether its data may come from the Hub or a built-in source only."""
    second_test_from_hub: bool = False
    """The same of `data.second_test`."""

    @property
    def name(self) -> str:
        """The recipe's own name: that of its file without the ending, of its folder, or of its repo on the Hub."""
        path = Path(self.origin)
        if path.name == RECIPE_NAME and path.resolve().parent.name:
            return path.resolve().parent.name
        return path.name.removesuffix(".yaml").removesuffix(".yml").partition("@")[0]

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML that `load_recipe` reads back to an equal recipe (`origin` aside)."""
        content = dataclasses.asdict(self)
        said = {key: content[key] for key in _TOP_LEVEL if key != "peft" or self.peft is not None}
        Path(path).write_text(dump_yaml(said), encoding="utf-8")


def load_recipe(path: str | Path) -> Recipe:
    """Read and check the recipe file at `path`, all but the `training` section (see `check_training`).

    Raises:
        RecipeError: The file is unreadable, a key is unknown, or a value is not valid.
    """
    path = Path(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {first_line(error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number too long, a date that does not exist
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys task, model, data, training")

    origin = str(path)
    for key in content:
        if key not in _TOP_LEVEL:
            raise unknown(key, "at the top level", _TOP_LEVEL, origin)
    if not isinstance(content.get("data"), dict) or "source" not in content["data"]:
        raise RecipeError(
            f"{origin}: data.source is missing; name a built-in source, a Hub data set or csv/json/imagefolder"
        )
    sections: dict[str, Any] = {}
    for name in ("model", "data", "training"):
        sections[name] = {} if content.get(name) is None else content[name]
        check(sections[name], dict[str, Any], name, origin)
    beside = path.parent / str(sections["training"].get("sharpness_config"))
    if os.path.exists(beside):
        sections["training"] = {**sections["training"], "sharpness_config": str(beside)}
    sections["model"] = build(ModelSection, sections["model"], "model", origin)
    sections["data"] = build(DataSection, sections["data"], "data", origin)
    if content.get("peft") is not None:
        check(content["peft"], dict[str, Any], "peft", origin)
        sections["peft"] = build(PeftSection, content["peft"], "peft", origin)
    if content.get("task") == "instruction-tuning":
        if content.get("metrics"):
            raise RecipeError(f"{origin}: metrics: instruction tuning is judged by its loss; leave them out")
        sections["metrics"] = []
    recipe = build(Recipe, {**content, **sections, "origin": origin}, "", origin)
    check_values(recipe)
    return recipe


def override(recipe: Recipe, name: str, text: str) -> None:
    """Set one dotted entry, as `--data.train_samples 2000` or `--model.config.hidden_size 32` do, in place.

    Args:
        recipe: The recipe to change.
        name: `model.KEY`, `data.KEY` or `peft.KEY`; entries of a mapping follow after further dots.
        text: The value as YAML; taken literally where the entry is a string.

    Raises:
        RecipeError: Unknown key, or a value that is not valid.
    """
    flag = f"--{name}"
    section_name, key, *inner = name.split(".")
    section = getattr(recipe, section_name) or PeftSection()  # the only section that a recipe may leave out
    entries = dataclasses.asdict(section)
    if key not in entries:
        raise unknown(key, f"in section {section_name}", entries, flag)
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        value = text
    mapping, *parts = [entries, key, *inner]
    for part in parts[:-1]:
        if mapping.get(part) is None:
            mapping[part] = {}
        mapping = mapping[part]
        if not isinstance(mapping, dict):
            raise RecipeError(f"{flag}: '{part}' is not a mapping")
    refusals = []
    for candidate in (value, text):  # 123 may be meant as text
        mapping[parts[-1]] = candidate
        try:
            setattr(recipe, section_name, build(type(section), entries, f"--{section_name}", ""))
            # The user's own choice, of that data set alone.
            recipe.data_from_hub &= name != "data.source"
            recipe.second_test_from_hub &= name not in ("data.second_test", "data.second_test.source")
            return
        except RecipeError as error:
            refusals.append(error)
    raise refusals[0]


def check_values(recipe: Recipe) -> None:
    """Check the sections again, after something was set in them.

    Raises:
        RecipeError: A value is not valid.
    """
    for name in ("model", "data", "peft"):
        section = getattr(recipe, name)
        if section is not None:
            build(type(section), dataclasses.asdict(section), name, recipe.origin)
    if recipe.data.second_test is not None:
        second_test(recipe)


def second_test(recipe: Recipe) -> Recipe:
    """Return the recipe with the data set that `data.second_test` names in the place of its own.

    Raises:
        RecipeError: An entry is unknown or not valid.
    """
    entries = {**dataclasses.asdict(recipe.data), **(recipe.data.second_test or {}), "second_test": None}
    data = build(DataSection, entries, "data.second_test", recipe.origin)
    return dataclasses.replace(recipe, data=data, data_from_hub=recipe.second_test_from_hub)


def check_training(training: dict[str, Any], arguments_class: type, origin: str) -> None:
    """Check the keys and types of a training section against the fields of `arguments_class`.

    Raises:
        RecipeError: Unknown key, or a value of the wrong type.
    """
    hints = get_type_hints(arguments_class) | SharpnessArguments.shared_types()
    names = [item.name for item in dataclasses.fields(arguments_class) if item.init]
    for key, value in training.items():
        if key not in names:
            raise unknown(key, "in section training", names, origin)
        check(value, hints[key], f"training.{key}", origin)
        if isinstance(value, int | float) and abs(value) > _LARGEST:
            raise RecipeError(f"{origin}: training.{key}: {short(value)} is too large")
