"""Whatever a shared recipe holds: nothing is read, run or reached, it ends soon, and no error prints raw bytes.

Every recipe goes as far as training would: it is loaded as somebody else's, its data are read, its model and its
Trainer are made. Files that tempt it lie in the current folder, and Python's audit hooks tell what was touched.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_sharpness import TrainingArguments
from hf_sharpness.sharpness_arguments.definitions import shared_arguments
from hf_sharpness.tasks import size
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.tasks.shared import check_plain_yaml, load_shared_recipe, private_training_keys, training_keys

pytest.importorskip("datasets")
pytest.importorskip("sklearn")

QUIET = {"database": None, "suppress_health_check": list(HealthCheck)}
FEW = settings(max_examples=60, deadline=None, derandomize=True, **QUIET)
MANY = settings(max_examples=5000, deadline=None, **QUIET)
EFFORTS = pytest.mark.parametrize("effort", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
SECONDS = 20.0
"""That no recipe may take, with much to spare: a hang is what is looked for."""

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


PROGRAMS = ("socket.connect", "socket.getaddrinfo", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")


class Watch:
    """What happened while it was on: tempting files that were opened, folders of them listed, connections, programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.on = folder, [], False
        self.tempting = {str(path) for path in folder.rglob("*")}
        sys.addaudithook(self.audit)  # there is no way to take it off

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            if os.path.abspath(os.fsdecode(arguments[0])) in self.tempting:
                self.seen.append(f"{event} {arguments[0]!r}")
        elif event.startswith(PROGRAMS):
            self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("tempting")
    for name, content in TEMPTING.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    before = os.getcwd()
    os.chdir(folder)
    yield Watch(folder)
    os.chdir(before)


def refusal_of(function: Callable[..., Any], *arguments: Any) -> str:
    """The one line with which a function refuses, or nothing. Any other error is a failure."""
    try:
        function(*arguments)
    except RecipeError as error:
        refusal = str(error)
    else:
        return ""
    assert refusal.isprintable()
    assert len(refusal) < 2500
    return refusal


def attempt(content: bytes, watch: Watch, capture: pytest.CaptureFixture[str]) -> str:
    """Go as far as training would with this recipe; what it said, if it was refused."""
    from hf_sharpness.tasks.prepare import prepare

    folder = watch.folder
    shared = folder.parent / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "recipe.yaml").write_bytes(content)

    def make() -> None:
        recipe = load_shared_recipe(str(shared))
        recipe.training |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "output_dir": "out"}
        prepare(recipe)

    watch.on, begin = True, time.monotonic()
    try:
        refusal = refusal_of(make)
    finally:
        watch.on = False
    seconds, seen, watch.seen = time.monotonic() - begin, watch.seen, []
    assert not seen
    assert seconds < SECONDS
    assert not (folder / "pwned").exists()
    assert "password" not in refusal
    printed = "".join(capture.readouterr())
    assert all(c.isprintable() or c.isspace() for c in printed), repr(printed)
    return refusal


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


@EFFORTS
def test_a_recipe_with_hostile_entries(effort: settings, watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    refused = []

    @effort
    @given(recipes())
    @example(VALID)
    def check(recipe: dict[str, Any]) -> None:
        refused.append(bool(attempt(json.dumps(recipe).encode(), watch, capfd)))

    check()
    assert not all(refused)  # some were made into a model and a Trainer
    assert sum(refused) > len(refused) / 3


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


@EFFORTS
def test_a_file_that_is_hardly_a_recipe(effort: settings, watch: Watch, capfd: pytest.CaptureFixture[str]) -> None:
    @effort
    @given(st.binary(max_size=200) | st.lists(yaml_bits, max_size=25).map("".join).map(str.encode) | damaged())
    @example(b"{" * 60_000)
    @example(b"- " * 30_000)
    @example(b"? " * 30_000)
    @example(b"[a, " * 16_000)
    @example(b"\x1b[31m: 1")
    def check(content: bytes) -> None:
        attempt(content, watch, capfd)

    check()


@EFFORTS
def test_plain_yaml_is_refused_or_small(effort: settings) -> None:
    @effort
    @given(st.binary(max_size=300) | st.lists(yaml_bits, max_size=40).map("".join).map(str.encode))
    def check(content: bytes) -> None:
        problem = refusal_of(check_plain_yaml, content, "the file")
        assert not problem or problem.startswith("the file: ")

    check()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"hidden_size": 100_000, "intermediate_size": 1_000_000}, "more than .* parameters"),
        ({"num_hidden_layers": 900_000}, "more than 300 modules"),
        ({"patch_size": 1024, "image_size": 1024, "hidden_size": 500_000}, "more than .* parameters"),
    ],
)
def test_a_model_that_does_not_fit(
    config: dict[str, int], problem: str, watch: Watch, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "MOST_MODULES", 300)
    recipe = VALID | {"model": {"config": VALID["model"]["config"] | config}}
    refusal = attempt(json.dumps(recipe).encode(), watch, capfd)
    assert "model.config: a model of " in refusal
    assert re.search(problem, refusal)
