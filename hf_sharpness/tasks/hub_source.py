"""Anything `datasets.load_dataset` can read: a Hub id, csv, json, imagefolder, ..."""

from __future__ import annotations

import os
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
        splits = builder.as_dataset()
    except Exception as error:  # the readers raise whatever they like
        raise RecipeError(
            f"data.source '{section.source}' is no built-in source ({', '.join(SOURCES)}) and "
            f"datasets.load_dataset cannot read it: {first_line(error)}"
        ) from error

    if task == "image-classification":
        columns = {"image_column": section.image_column}
    else:
        columns = {"text_column": section.text_column}
        if section.text_pair_column is not None:
            columns["text_pair_column"] = section.text_pair_column
    labels = {"label_column": section.label_column}
    if task == "instruction-tuning":
        columns["response_column"], labels = section.response_column, {}

    def split(key: str, name: str) -> Any:
        if name not in splits:
            raise RecipeError(
                f"data.{key}: '{section.source}' has no split '{name}'{nearest(name, splits)}; "
                f"it has {', '.join(splits)}"
            )
        for column_key, column in {**columns, **labels}.items():
            if column not in splits[name].column_names:
                known = splits[name].column_names
                raise RecipeError(
                    f"data.{column_key}: '{section.source}' has no column '{column}'{nearest(column, known)}; "
                    f"it has {', '.join(known)}"
                )
        return splits[name]

    train = split("train_split", section.train_split)
    if task == "instruction-tuning":

        def answered(dataset: Any) -> Examples:
            return Examples.of(_Columns(dataset, list(columns.values())), np.zeros(len(dataset)))

        return Data(
            train=answered(train),
            eval=answered(split("eval_split", section.eval_split)) if section.eval_split else None,
            test=answered(split("test_split", section.test_split)) if section.test_split else None,
            label_names=[],
        )
    feature = train.features[section.label_column]
    names = getattr(feature, "names", None)  # a ClassLabel
    values = (
        range(len(names))
        if names
        else sorted(set(train[section.label_column]), key=lambda value: (str(type(value)), value))
    )
    ids = {value: position for position, value in enumerate(values)}

    def examples(key: str, dataset: Any) -> Examples:
        try:
            labels = np.array([ids[value] for value in dataset[section.label_column]], dtype=np.int64)
        except KeyError as error:
            hint = (
                "its labels are hidden, choose another split"
                if error.args[0] == -1
                else "it does not occur in training"
            )
            raise RecipeError(
                f"data.{key}: label {error.args[0]!r} is none of the {len(ids)} classes: {hint}"
            ) from None
        return Examples.of(_Columns(dataset, list(columns.values())), labels)

    return Data(
        train=examples("train_split", train),
        eval=examples("eval_split", split("eval_split", section.eval_split)) if section.eval_split else None,
        test=examples("test_split", split("test_split", section.test_split)) if section.test_split else None,
        label_names=list(names) if names else [str(value) for value in ids],
    )
