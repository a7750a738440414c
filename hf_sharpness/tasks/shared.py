"""Recipes from the Hub: ``hf-sharpness train user/repo`` takes the ``recipe.yaml`` of the repo.

Whoever wrote it need not be trusted: it says which model and data on the Hub to train, and how.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..methods.registry import most_shared
from ..sharing.fetch import MAX_BYTES, fetch, read
from ..sharing.values import short
from ..sharpness_arguments.definitions import shared_arguments
from .bundled import RECIPE_NAME
from .errors import RecipeError
from .metrics import METRICS
from .recipe import Recipe, load_recipe
from .sources import SOURCES

MAX_DEPTH = 16

_OTHER_KEYS = frozenset(
    """
    activation_checkpointing adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices
    batch_eval_metrics bf16 bf16_full_eval data_seed dataloader_drop_last eval_accumulation_steps eval_delay
    eval_do_concat_batches eval_on_start eval_steps eval_strategy fp16 fp16_full_eval full_determinism
    gradient_accumulation_steps gradient_checkpointing greater_is_better include_num_input_tokens_seen
    label_smoothing_factor learning_rate load_best_model_at_end logging_first_step logging_nan_inf_filter logging_steps
    logging_strategy lr_scheduler_kwargs lr_scheduler_type max_grad_norm max_steps metric_for_best_model
    neftune_noise_alpha num_train_epochs optim_args per_device_eval_batch_size per_device_train_batch_size
    prediction_loss_only remove_unused_columns save_only_model save_steps save_strategy
    save_total_limit seed tf32 torch_empty_cache_steps train_sampling_strategy use_cache warmup_ratio warmup_steps
    weight_decay
    """.split()  # noqa: SIM905
)


def training_keys() -> frozenset[str]:
    """What the training section of a shared recipe may set: how a model is trained, by whichever method.

    Not where files go, what is uploaded and reported to whom, how the machine is used, nor what makes code run (a
    compiler backend, hub kernels), nor regular expressions, which may take for ever to match (optim_target_modules).
    """
    return _OTHER_KEYS.union(shared_arguments())


MOST_OF_TRAINING = {
    "gradient_accumulation_steps": 4096,
    "per_device_eval_batch_size": 4096,
    "per_device_train_batch_size": 4096,
}
"""A shared recipe may not ask for more, beside what bounds a shared config; the command line may."""
MOST_IN_CONFIG = {"image_size": 1024}
"""The same for entries of a model's configuration; all others have LARGEST."""
MOST_RANK = 256
"""The same for the rank of adapters."""
LARGEST = 1_000_000
_MOST_WILDCARDS = 4  # in a pattern of file names: more may take for ever to match


def private_training_keys(arguments_class: type) -> list[str]:
    """The arguments that a shared recipe may not set: all but ``training_keys()``."""
    return [f.name for f in dataclasses.fields(arguments_class) if f.init and f.name not in training_keys()]


def shareable_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """A training section without what a shared recipe may not set, tokens above all: what to save in its place."""
    return {key: value for key, value in training.items() if key in training_keys()}


def load_shared_recipe(name: str) -> Recipe:
    """The recipe of a repo on the Hub, ``user/repo`` or ``user/repo@revision``, checked as somebody else's.

    Raises:
        RecipeError: there is no such recipe or no access to it, or it reaches for more than a recipe may.
    """
    recipe = load_recipe(download_recipe(name))
    recipe.origin = name
    check_shared_recipe(dataclasses.asdict(recipe), name)
    for key in ("name_or_path", "tokenizer"):
        model = getattr(recipe.model, key)
        if model is not None and os.path.exists(model):
            raise RecipeError(
                f"{name}: model.{key}: {short(model)} would be the file or folder of this name here: a shared recipe "
                f"names what lies on the Hub; give --model.{key} ./{model} if you want yours, or start elsewhere"
            )
    recipe.shared = recipe.data_from_hub = recipe.second_test_from_hub = True
    return recipe


def download_recipe(name: str, revision: str | None = None, token: str | bool | None = None, **options: Any) -> Path:
    """Fetch ``recipe.yaml`` from a repo, and make sure that it is safe to parse.

    Call ``check_shared_recipe`` with what it says.

    Args:
        name: ``user/repo``, ``user/repo@revision``, or a local folder or file.
        revision: branch, tag or commit. Default: the main branch.
        token: for private and gated repos. Default: that of ``hf auth login`` or HF_TOKEN.
        options: further ones of ``fetch``.

    Raises:
        RecipeError: there is no such file or no access to it, or it is too large or not plain YAML.
    """
    try:
        path, origin = fetch(name, RECIPE_NAME, revision=revision, token=token, **options)
    except (ValueError, OSError) as error:
        raise RecipeError(f"recipe {error}") from error
    check_plain_yaml(read(path), origin)
    return path


def check_plain_yaml(content: bytes, origin: str) -> None:
    """Refuse YAML that is large, deeply nested, or uses aliases (a few lines of which can mean gigabytes) or tags.

    Raises:
        RecipeError: names the file and what to change.
    """

    def refuse(problem: str) -> NoReturn:
        raise RecipeError(f"{origin}: {problem}")

    if len(content) > MAX_BYTES:
        refuse(f"is larger than {MAX_BYTES // 1024} KiB, so no recipe: remove what does not belong there")
    depth = documents = 0
    try:
        event: Any  # of types that the stubs know little of
        for event in yaml.parse(content.decode("utf-8"), Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                refuse(f"line {line}: aliases and anchors are not allowed in a shared recipe: write the value out")
            if getattr(event, "tag", None):
                refuse(f"line {line}: the tag {short(event.tag)} is not allowed in a shared recipe: remove it")
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > 1000:
                refuse(f"line {line}: a value of {len(event.value)} characters is too long: at most 1000")
            if depth > MAX_DEPTH or documents > 1:
                refuse(f"line {line}: a recipe is one document, nested at most {MAX_DEPTH} deep")
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        refuse(f"is not valid YAML: {' '.join(str(error).split())[:300]}")


def check_shared_recipe(recipe: Mapping[str, Any], origin: str) -> None:
    """Refuse a recipe from somebody else that reaches for more than model, data and hyper-parameters.

    Args:
        recipe: its entries ``training``, ``model``, ``data``, ``peft`` and ``metrics``, all of them optional.
        origin: how an error names the recipe.

    Raises:
        RecipeError: names key, value and remedy.
    """
    training, model, data = (recipe.get(section) or {} for section in ("training", "model", "data"))
    allowed, most = training_keys(), MOST_OF_TRAINING | most_shared()
    for key, value in training.items():
        if key not in allowed:
            raise RecipeError(
                f"{origin}: training: {short(key)}: {short(value)} is not allowed in a shared recipe: give it on the "
                "command line if you want it"
            )
        if key in most and isinstance(value, int | float) and value > most[key]:
            raise RecipeError(
                f"{origin}: training.{key}: {short(value)} is too large for a shared recipe: must be at most "
                f"{most[key]}, or be given on the command line"
            )
    _refuse_paths({key: value for key, value in model.items() if key != "config"}, f"{origin}: model")
    _refuse_paths(data, f"{origin}: data")
    _check_config(model.get("config"), f"{origin}: model.config")
    _check_data(data, f"{origin}: data")
    _check_peft(recipe.get("peft") or {}, f"{origin}: peft")
    for metric in recipe.get("metrics") or []:
        if not (isinstance(metric, str) and metric in METRICS):
            raise RecipeError(
                f"{origin}: metrics: {short(metric)} is not allowed in a shared recipe, only built-in metrics are "
                f"({', '.join(METRICS)})"
            )


def _check_peft(peft: Mapping[str, Any], where: str) -> None:
    """Refuse adapters that are larger than most models' layers; all else is bounded for every recipe."""
    rank = peft.get("r")
    if isinstance(rank, int | float) and rank > MOST_RANK:
        raise RecipeError(
            f"{where}.r: {short(rank)} is too large for a shared recipe: must be at most {MOST_RANK}, or be given with "
            "--peft.r"
        )


def _check_data(data: Mapping[str, Any], where: str) -> None:
    """Refuse whatever might be a file of the user's: it would end in the model, if only as the name of a class."""
    source = data.get("source")
    built_in = isinstance(source, str) and source in SOURCES
    if source is not None and not built_in and not _HUB_ID.fullmatch(str(source)):
        raise RecipeError(
            f"{where}.source: {short(source)} is not allowed in a shared recipe, which names a data set on the Hub "
            f"(user/name) or a built-in source ({', '.join(SOURCES)}): give another one with --data.source"
        )
    if data.get("path") is not None:
        raise RecipeError(
            f"{where}.path: {short(data['path'])} is not allowed in a shared recipe: give it with --data.path"
        )
    files = data.get("data_files")
    if files is not None and built_in:
        raise RecipeError(f"{where}.data_files: {short(files)} does not go with the built-in source {source}")
    for text in _strings(files):
        if sum(text.count(wildcard) for wildcard in "*?[{") > _MOST_WILDCARDS:
            raise RecipeError(
                f"{where}.data_files: {short(text)} is not allowed in a shared recipe: at most {_MOST_WILDCARDS} "
                "wildcards; name the files"
            )
    second = data.get("second_test")
    if second is not None:
        if not isinstance(second, Mapping):
            raise RecipeError(f"{where}.second_test: {short(second)} is not a mapping")
        _check_data({**data, **second, "second_test": None}, f"{where}.second_test")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry)


_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_PATH = re.compile(r"^[/~.\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|://|::")


def _refuse_paths(value: Any, where: str) -> None:
    """Refuse absolute paths, paths that lead outside a folder, and URLs."""
    for text in _strings(value):
        if _PATH.search(text):
            raise RecipeError(
                f"{where}: {short(text)} is not allowed in a shared recipe, which names what lies on the Hub, and no "
                "path or URL: give it on the command line"
            )


def _check_config(config: Any, where: str) -> None:
    """Refuse entries of a model's configuration by which transformers loads code (auto_map, kernels), and huge ones."""
    for text in _strings(config):
        if text.startswith("_") or "/" in text or "\\" in text or text in ("auto_map", "quantization_config"):
            raise RecipeError(
                f"{where}: {short(text)} is not allowed in a shared recipe: entries are plain words and numbers, and "
                "none that names code or another model"
            )
    for key, number in _numbers(config):
        most = MOST_IN_CONFIG.get(key, LARGEST)
        if not -LARGEST <= number <= most:
            raise RecipeError(
                f"{where}.{key}: {short(number)} is not allowed in a shared recipe: must be at most {most:,}"
            )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in nested mappings and lists, each with the key it stands under."""
    if isinstance(value, int | float):
        yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _numbers(entry, str(name))
            yield from _numbers(name, str(name))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry, key)
