"""sharpness_config.json in a folder: what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_values import OF_ALL, OPTIONS, OTHER, content, values

import hf_sharpness
from hf_sharpness import Seq2SeqTrainingArguments, SharpnessArguments, TrainingArguments
from hf_sharpness.sharpness_arguments.definitions import defaults, shared_arguments


def test_every_argument_has_a_value_to_test_with() -> None:
    every = {name: default for name, default in defaults("wsam").items() if name in shared_arguments()}
    assert {name for name in every if OF_ALL.get(name) not in (None, every[name])} == set(every) - {"sam_fraction"}


def test_what_is_written(folder: str) -> None:
    about = {"format_version": 1, "hf_sharpness_version": hf_sharpness.__version__, "paper": "2305.15817"}
    text = Path(folder, "sharpness_config.json").read_text()
    assert json.loads(text) == about | OTHER
    assert list(json.loads(text)) == [*about, *(name for name in shared_arguments() if name in OTHER)]


@pytest.mark.parametrize(
    ("arguments", "effective"),
    [
        ({"optim": "wsam"}, {"wsam_mode": "coupled", "wsam_gamma": 0.6}),
        ({"optim": "wsam", "base_optim": "sgd"}, {"wsam_mode": "coupled", "wsam_gamma": 0.6}),
        ({"optim": "wsam", "wsam_gamma": 0.3}, {"wsam_mode": "coupled"}),
        ({"optim": "wsam", "wsam_mode": "decoupled", "wsam_gamma": 0.3}, None),
        ({"optim": "sam"}, None),
        ({"optim": "sgd"}, None),
    ],
)
def test_what_the_arguments_amount_to_stands_beside_them(
    arguments: dict[str, Any], effective: dict[str, Any] | None, tmp_path: Path
) -> None:
    written = json.loads(SharpnessArguments(**arguments).save_pretrained(tmp_path).read_text())
    assert written.get("effective") == effective
    read = SharpnessArguments.from_pretrained(tmp_path)
    assert read.method() == SharpnessArguments(**arguments).method()


@pytest.mark.parametrize("comment", [{"sam_rho": 9.0, "hub_token": "x"}, "wsam", None, [[1e5]]])
def test_what_they_amount_to_is_not_read(comment: Any, tmp_path: Path) -> None:
    path = tmp_path / "sharpness_config.json"
    path.write_text(json.dumps({"format_version": 1, "optim": "sam", "effective": comment}))
    assert SharpnessArguments.from_pretrained(path).method() == SharpnessArguments(optim="sam").method()


@pytest.mark.parametrize(
    ("optim", "keys"),
    [
        ("adamw_torch", []),
        ("sam", ["sam_rho", "sam_adaptive", "sam_steps"]),
        ("xsam", ["sam_rho", "sam_adaptive", "sam_steps", *(name for name in OF_ALL if name.startswith("xsam_"))]),
    ],
)
def test_a_config_has_the_keys_of_its_method(optim: str, keys: list[str], tmp_path: Path) -> None:
    path = SharpnessArguments(optim=optim, xsam_refresh=9, wsam_gamma=0.1).save_pretrained(tmp_path)
    assert list(json.loads(path.read_text()))[3:] == ["optim", "base_optim", *keys, *OPTIONS]


def test_a_config_with_the_keys_of_all_methods(tmp_path: Path) -> None:
    """As the first version wrote them."""
    (tmp_path / "old.json").write_bytes(content(hf_sharpness_version="0.1.0", paper="2305.15817", **OF_ALL))
    loaded = TrainingArguments("out", sharpness_config=str(tmp_path / "old.json"))
    assert {name: getattr(loaded, name) for name in OF_ALL} == OF_ALL


@pytest.mark.parametrize(
    ("optim", "paper"),
    [("sam", "2010.01412"), ("wsam", "2305.15817"), ("xsam", "2603.10048"), ("adamw_torch", None)],
)
def test_the_paper(optim: str, paper: str | None, tmp_path: Path) -> None:
    path = SharpnessArguments(optim=optim).save_pretrained(tmp_path)
    assert json.loads(path.read_text())["paper"] == paper
    assert SharpnessArguments.from_pretrained(path).optim == optim


def test_only_valid_arguments_are_saved(tmp_path: Path) -> None:
    arguments = SharpnessArguments(optim="sam")
    arguments.sam_rho = -1.0
    with pytest.raises(ValueError, match=r"sam_rho=-1.0 is not valid"):
        arguments.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments_class", [TrainingArguments, Seq2SeqTrainingArguments])
def test_save_and_load(arguments_class: type, folder: str, tmp_path: Path) -> None:
    assert values(SharpnessArguments.from_pretrained(folder)) == OTHER
    assert values(SharpnessArguments.from_pretrained(Path(folder, "sharpness_config.json"))) == OTHER
    loaded = arguments_class.from_pretrained(folder, output_dir="out", learning_rate=0.1, wsam_gamma=None)
    assert type(loaded) is arguments_class
    assert values(loaded) == OTHER | {"wsam_gamma": None}
    assert loaded.learning_rate == 0.1
    loaded.save_pretrained(tmp_path / "again")
    assert values(SharpnessArguments.from_pretrained(tmp_path / "again")) == OTHER | {"wsam_gamma": None}
