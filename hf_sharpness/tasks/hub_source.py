"""Anything `datasets.load_dataset` can read: a Hub id, csv, json, imagefolder, ..."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..sharing.values import short
from .errors import RecipeError, first_line, nearest
from .extra import INSTALL
from .sections import DataSection
from .sources import SOURCES, Data, Examples


class _Columns:
    """Rows of a `datasets.Dataset` restricted to some columns and decoded one at a time."""

    def __init__(self, dataset: Any, names: list[str]) -> None:
        self.dataset, self.names = dataset.select_columns(names), names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        values = tuple(self.dataset[index][name] for name in self.names)
        return values[0] if len(values) == 1 else values


def refuse_other_files(builder: Any, source: str) -> None:
    """Refuse a data set whose own description names files elsewhere: on this machine, at a URL, in another repo."""
    for files in (builder.config.data_files or {}).values():
        for file in files:
            if not str(file).startswith(f"hf://datasets/{source}@"):
                raise RecipeError(f"it names {short(str(file))}, which is no file of its own")


def refuse_other_images(dataset: Any, columns: Iterable[str], source: str) -> None:
    """Refuse a column whose cells name files to be read when they are decoded, but for images of the data set itself.

    Its rows may hold an image as bytes, or as the path of one: ``datasets`` would open whatever file that names.
    """
    import datasets
    from huggingface_hub import constants

    snapshots = os.path.join(constants.HF_HUB_CACHE, f"datasets--{source.replace('/', '--')}", "snapshots")
    folders = tuple(os.path.join(os.path.abspath(f), "") for f in (snapshots, datasets.config.DOWNLOADED_DATASETS_PATH))

    def is_own(path: str) -> bool:
        """It is a file of the data set on the Hub, or one downloaded or extracted from there."""
        if ".." in path.replace("\\", "/").split("/"):
            return False
        return path.startswith(f"hf://datasets/{source}@") or os.path.abspath(path).startswith(folders)

    for name in columns:
        feature = dataset.features[name]
        if not isinstance(feature, datasets.Image):
            if _is_decoded(feature):
                raise RecipeError(f"column '{name}' ({type(feature).__name__}) may name files, which are not read")
            continue
        cells = dataset.cast_column(name, datasets.Image(decode=False)).data.column(name)
        for chunk in cells.chunks:
            for path in chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist():
                if path is not None and not is_own(path):
                    raise RecipeError(f"it names the image {short(path)}, which is no file of its own")


def _is_decoded(feature: Any) -> bool:
    """Whether there is a feature in this one that opens files when it is read."""
    inner = feature.values() if isinstance(feature, dict) else [feature.feature] if hasattr(feature, "feature") else []
    return bool(getattr(feature, "decode", False)) or any(map(_is_decoded, inner))


def read_with_datasets(section: DataSection, task: str, hub_only: bool = False) -> Data:
    """Load the splits that `section` names.

    Args:
        section: The recipe's data section.
        task: The recipe's; decides which columns are the input. Instruction tuning has no labels.
        hub_only: Refuse everything but the files of a data set on the Hub. Default False.

    Raises:
        RecipeError: `datasets` is missing, the data set cannot be loaded, a split or a column does not exist, or a
            test label never occurs in training.
    """
    splits = _load(section, hub_only)
    inputs = _input_columns(section, task)
    used = inputs if task == "instruction-tuning" else {**inputs, "label_column": section.label_column}
    chosen: dict[str, Any] = {}
    for key in ("train_split", "eval_split", "test_split"):
        if name := getattr(section, key):
            chosen[key] = _split(splits, section.source, key, name, used)
            if hub_only:
                refuse_other_images(chosen[key], used.values(), section.source)
    if task == "instruction-tuning":
        examples = {key: _unlabelled(dataset, inputs.values()) for key, dataset in chosen.items()}
        names: list[str] = []
    else:
        examples, names = _classified(chosen, list(inputs.values()), section.label_column)
    return Data(examples["train_split"], examples.get("eval_split"), examples.get("test_split"), names)


def _load(section: DataSection, hub_only: bool) -> Mapping[str, Any]:
    """All splits of the data set, by name."""
    try:
        from datasets import load_dataset_builder
    except ImportError:
        raise RecipeError(f"data.source '{section.source}' needs `datasets`; install it with `{INSTALL}`") from None
    try:
        if hub_only and os.path.exists(section.source):
            raise RecipeError(f"there is a folder of this name here; give --data.source ./{section.source} to take it")
        builder = load_dataset_builder(
            section.source, section.config_name, data_dir=section.path, data_files=section.data_files
        )
        if hub_only:
            refuse_other_files(builder, section.source)
        builder.download_and_prepare()
        splits: Mapping[str, Any] = builder.as_dataset()
        return splits
    except Exception as error:  # the readers raise whatever they like
        raise RecipeError(
            f"data.source '{section.source}' is no built-in source ({', '.join(SOURCES)}) and "
            f"datasets.load_dataset cannot read it: {first_line(error)}"
        ) from error


def _input_columns(section: DataSection, task: str) -> dict[str, str]:
    """The columns that are a model's input (and its answer), by the key that names them."""
    if task == "image-classification":
        return {"image_column": section.image_column}
    keys = ["text_column", "text_pair_column", *(["response_column"] if task == "instruction-tuning" else [])]
    return {key: name for key in keys if (name := getattr(section, key)) is not None}


def _split(splits: Mapping[str, Any], source: str, key: str, name: str, columns: Mapping[str, str]) -> Any:
    """The split that `data.<key>` names, which has to have these columns."""
    if name not in splits:
        raise RecipeError(
            f"data.{key}: '{source}' has no split '{name}'{nearest(name, splits)}; it has {', '.join(splits)}"
        )
    known = splits[name].column_names
    for column_key, column in columns.items():
        if column not in known:
            raise RecipeError(
                f"data.{column_key}: '{source}' has no column '{column}'{nearest(column, known)}; "
                f"it has {', '.join(known)}"
            )
    return splits[name]


def _unlabelled(dataset: Any, columns: Iterable[str]) -> Examples:
    return Examples.of(_Columns(dataset, list(columns)), np.zeros(len(dataset)))


def _classified(
    chosen: Mapping[str, Any], inputs: list[str], label_column: str
) -> tuple[dict[str, Examples], list[str]]:
    """Examples with the positions of their labels among the classes, and the names of these."""
    train = chosen["train_split"]
    names = getattr(train.features[label_column], "names", None)  # a ClassLabel
    values = (
        range(len(names)) if names else sorted(set(train[label_column]), key=lambda value: (str(type(value)), value))
    )
    ids = {value: position for position, value in enumerate(values)}
    examples: dict[str, Examples] = {}
    for key, dataset in chosen.items():
        try:
            labels = np.array([ids[value] for value in dataset[label_column]], dtype=np.int64)
        except KeyError as error:
            hint = (
                "its labels are hidden, choose another split"
                if error.args[0] == -1
                else "it does not occur in training"
            )
            raise RecipeError(
                f"data.{key}: label {error.args[0]!r} is none of the {len(ids)} classes: {hint}"
            ) from None
        examples[key] = Examples.of(_Columns(dataset, inputs), labels)
    return examples, list(names) if names else [str(value) for value in ids]
