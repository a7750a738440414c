"""Recipes and files that mean harm, drawn by hypothesis; and the files that tempt them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from hf_sharpness import TrainingArguments
from hf_sharpness.sharpness_arguments.definitions import shared_arguments
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.tasks.shared import private_training_keys, training_keys

TEMPTING = {
    "secrets.csv": "text,label\na,password\nb,hunter2\n",
    "train.csv": "text,label\na,password\nb,hunter2\n",
    "photos/cat/1.png": "no picture",
    "scripts/scripts.py": "open('pwned', 'w')\n",
    "metric.py": "open('pwned', 'w')\n",
    "user/data/train.csv": "text,label\na,password\nb,hunter2\n",
    "user/data/data.py": "open('pwned', 'w')\n",
    "user/model/config.json": '{"model_type": "bert", "auto_map": {"AutoConfig": "code.Config"}}',
    "user/model/code.py": "open('pwned', 'w')\n",
    "imdb/train.csv": "text,label\na,password\nb,hunter2\n",
    "model/config.json": '{"model_type": "vit"}',
    "sharpness_config.json": '{"format_version": 1, "optim": "sam"}',
}
VALID = {
    "task": "image-classification",
    "model": {
        "config": {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "patch_size": 8,
            "image_size": 8,
        }
    },
    "data": {"source": "digits"},
    "training": {"optim": "wsam", "max_steps": 1},
}
ESCAPES = "\x1b[31mred\x1b]0;title\x07", "\x9b2J", "a\u202eb", "\x00", "line\nline", "\r"
NAMES = (*TEMPTING, *(str(Path(name).parent) for name in TEMPTING), "scripts", "user/none", "builtin:minilm", "digits")
PATHS = (
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "../secrets.csv",
    "./photos",
    "file:///etc/passwd",
    "https://host/x",
    "C:\\x",
    ".",
)
WORDS = (
    "csv",
    "json",
    "text",
    "imagefolder",
    "arrow",
    "vit",
    "bert",
    "swin",
    "convnext",
    "trec",
    "wsam",
    "xsam",
    "cosine",
)
BOMBS = (
    "(a+)+$",
    "*a*a*a*a*a*a*b",
    "[" * 50,
    "{" * 50,
    "%s%s%n",
    "${HOME}",
    "$(touch pwned)",
    "`touch pwned`",
    "a" * 900,
)
texts = st.sampled_from([*ESCAPES, *NAMES, *PATHS, *WORDS, *BOMBS]) | st.text(max_size=30)
numbers = (
    st.sampled_from([0, 1, -1, 2, 8, 2**31, 2**63, 2**64, 10**12, 10**30, -(10**12), 1e-300, 1e300, 1e9])
    | st.integers()
    | st.integers(10**300, 10**310)
    | st.floats()
)
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
CONFIG = [
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "image_size"),
    *("num_channels", "hidden_act", "layer_norm_eps", "initializer_range", "qkv_bias", "encoder_stride", "depths"),
    *(
        "auto_map",
        "_attn_implementation",
        "attn_implementation",
        "quantization_config",
        "dtype",
        "id2label",
        "text_config",
        "save_pretrained",
        "to_dict",
        "name_or_path",
    ),
    *("hidden_dropout_prob", "pooler_output_size", "pooler_act", "vocab_size", "problem_type", "text_config"),
]
PRIVATE = private_training_keys(TrainingArguments)


def changes(keys: Any) -> Any:
    """A few entries that replace or join those of a section that works."""
    return st.dictionaries(keys, anything, max_size=2)


section_keys = {
    "model": st.sampled_from([*ModelSection.__dataclass_fields__]) | texts,
    "data": st.sampled_from([*DataSection.__dataclass_fields__]) | texts,
    "training": st.sampled_from(sorted(training_keys()))
    | st.sampled_from(shared_arguments())
    | st.sampled_from(PRIVATE)
    | texts,
}


@st.composite
def recipes(draw: Any) -> dict[str, Any]:
    """A recipe that works, with something hostile in one or two places."""
    recipe = json.loads(json.dumps(VALID))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(["model", "data", "training", "training", "config", "config", "top", "metrics"]))
        if place == "config":
            recipe["model"]["config"] |= draw(changes(st.sampled_from(CONFIG) | texts))
        elif place == "metrics":
            recipe["metrics"] = draw(st.lists(scalars, max_size=3) | anything)
        elif place == "top":
            recipe |= draw(st.dictionaries(st.sampled_from([*recipe, "description", "metrics"]) | texts, anything))
        elif isinstance(recipe.get(place), dict):
            recipe[place] |= draw(changes(section_keys[place]))
        if not (isinstance(recipe.get("model"), dict) and isinstance(recipe["model"].get("config"), dict)):
            break
    return recipe


TOKENS = r"training: |model: |data: |optim: wsam|output_dir: /|&a |*a|!!python/name:x|  |- |{|[|}|]|,|: |? |>|'|\"|%|@"
yaml_bits = st.sampled_from(
    [*TOKENS.split("|"), "|", "<<: ", "\n", "---\n", "...", "#", "1e3", ".nan", "2020-13-45", "\t", *ESCAPES]
)


@st.composite
def damaged(draw: Any) -> bytes:
    """A recipe that works, with a few bytes replaced, removed or repeated."""
    content = bytearray(yaml.safe_dump(VALID).encode())
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 5))] = draw(
            st.binary(max_size=4) | yaml_bits.map(str.encode) | numbers.map(lambda number: str(number)[:60].encode())
        )
    return bytes(content)
