"""sharpness_config.json in a folder: what is written, what overrides it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

import hf_sharpness
from hf_sharpness import Seq2SeqTrainingArguments, SharpnessArguments, TrainingArguments
from hf_sharpness.sharing.config import parse_config
from hf_sharpness.sharpness_arguments.definitions import defaults, shared_arguments

OTHER = {
    "optim": "wsam",
    "base_optim": "sgd",
    "sam_rho": 0.3,
    "sam_adaptive": True,
    "sam_steps": 3,
    "sam_scope": "device",
    "sam_check": "error",
    "sam_start": 0.25,
    "sam_stop": 0.75,
    "sam_interval": 2,
    "sam_rho_schedule": "linear",
    "sam_fraction": 1.0,
    "sam_target_modules": "norm, head",
    "wsam_mode": "coupled",
    "wsam_gamma": 0.7,
}
"""A value that is not its default for every argument that concerns WSAM; of several steps there is no fraction."""
OF_ALL = OTHER | {
    "xsam_rho_max": 0.9,
    "xsam_alpha": 0.25,
    "xsam_alpha_max": 1.5,
    "xsam_alpha_points": 5,
    "xsam_search": "grid",
    "xsam_refresh": 7,
}
"""And for those of other methods."""
OPTIONS = [
    "sam_scope",
    "sam_check",
    "sam_start",
    "sam_stop",
    "sam_interval",
    "sam_rho_schedule",
    "sam_fraction",
    "sam_target_modules",
]
DEFAULTS = {name: default for name, default in defaults("wsam").items() if name in OTHER}


def values(arguments: Any) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in OTHER}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Holds a config in which nothing is a default."""
    SharpnessArguments(**OTHER).save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def command_line(*line: str, arguments_class: type = TrainingArguments) -> Any:
    parser = HfArgumentParser(arguments_class)
    (arguments,) = parser.parse_args_into_dataclasses(["--output_dir", "out", *line], look_for_args_file=False)
    return arguments


# Writing


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
        ({"optim": "wsam", "base_optim": "sgd"}, {"wsam_mode": "decoupled", "wsam_gamma": 0.9}),
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


# What was given overrides the config


def test_all_of_the_config_applies(folder: str) -> None:
    for arguments in (
        TrainingArguments("out", sharpness_config=folder),
        Seq2SeqTrainingArguments("out", sharpness_config=f"{folder}/sharpness_config.json"),
        command_line("--sharpness_config", folder),
        SharpnessArguments(sharpness_config=folder),
    ):
        assert values(arguments) == OTHER
        assert [type(value) for value in values(arguments).values()] == [type(value) for value in OTHER.values()]


TOO = {"sam_adaptive": {"sam_rho": 0.3}, "wsam_mode": {"wsam_gamma": 0.7}}
"""What has to be given beside a change that would give the config's number another meaning."""


@pytest.mark.parametrize("name", [name for name, default in DEFAULTS.items() if default is not None])
@pytest.mark.parametrize("given_by", ["flag", "constructor", "dict", "json"])
def test_a_default_that_was_given_overrides_the_config(name: str, given_by: str, folder: str, tmp_path: Path) -> None:
    default = DEFAULTS[name]
    given = {"output_dir": "out", "sharpness_config": folder, name: default} | TOO.get(name, {})
    parser = HfArgumentParser(TrainingArguments)
    if given_by == "flag":
        arguments = command_line(*(text for key, value in given.items() for text in (f"--{key}", str(value))))
    elif given_by == "constructor":
        arguments = TrainingArguments(**given)
    elif given_by == "dict":
        (arguments,) = parser.parse_dict(given)
    else:
        (tmp_path / "arguments.json").write_text(json.dumps(given))
        (arguments,) = parser.parse_json_file(str(tmp_path / "arguments.json"))
    assert values(arguments) == OTHER | {name: default}


def test_other_values_override_the_config(folder: str) -> None:
    line = ["--sharpness_config", folder, "--wsam_gamma", "0.2", "--sam-rho", "0.1", "--sam_adaptive", "no"]
    expected = OTHER | {"wsam_gamma": 0.2, "sam_rho": 0.1, "sam_adaptive": False}
    assert values(command_line(*line)) == expected


@pytest.mark.parametrize(
    ("saved", "given", "meanings"),
    [
        ({"wsam_mode": "coupled"}, {"wsam_mode": "decoupled"}, ("coupled", "decoupled")),
        ({"wsam_mode": "coupled"}, {"wsam_mode": "decoupled", "wsam_gamma": 0.8}, None),
        ({"base_optim": "sgd"}, {"base_optim": "adamw_torch"}, ("decoupled", "coupled")),
        ({"base_optim": "adamw_torch"}, {"base_optim": "sgd"}, ("coupled", "decoupled")),
        ({"wsam_mode": "coupled"}, {"base_optim": "sgd"}, None),
        ({"base_optim": "sgd"}, {"wsam_mode": "decoupled"}, None),
        ({"base_optim": "adafactor"}, {"base_optim": "adamw_torch", "sam_rho": 0.1}, None),
        ({"wsam_mode": "coupled"}, {"optim": "sam", "wsam_mode": "decoupled"}, None),
    ],
)
def test_one_modes_gamma_is_not_the_others(
    saved: dict[str, Any], given: dict[str, Any], meanings: tuple[str, str] | None, tmp_path: Path
) -> None:
    SharpnessArguments(optim="wsam", wsam_gamma=0.7, **saved).save_pretrained(tmp_path)
    if meanings is None:
        arguments = SharpnessArguments(sharpness_config=str(tmp_path), **given)
        assert arguments.wsam_gamma == given.get("wsam_gamma", 0.7)
        return
    before, after = meanings
    problem = f"its wsam_gamma=0.7 was chosen for the {before} mode, and what was given makes it the {after} mode"
    with pytest.raises(ValueError, match=f"^sharpness_config='.*': {problem}: give wsam_gamma too$"):
        SharpnessArguments(sharpness_config=str(tmp_path), **given)


def test_a_gamma_that_was_not_chosen_follows_the_mode(tmp_path: Path) -> None:
    SharpnessArguments(optim="wsam", wsam_mode="coupled").save_pretrained(tmp_path)
    arguments = SharpnessArguments(sharpness_config=str(tmp_path), wsam_mode="decoupled")
    assert (arguments.wsam_mode, arguments.wsam_gamma) == ("decoupled", None)


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"sam_adaptive": True}, True),
        ({"sam_adaptive": True, "sam_rho": 0.5}, False),
        ({"sam_adaptive": False}, False),
        ({}, False),
    ],
)
def test_rho_of_another_metric(given: dict[str, Any], refused: bool, optim: str, tmp_path: Path) -> None:
    SharpnessArguments(optim=optim, sam_rho=0.1).save_pretrained(tmp_path)
    if refused:
        problem = r"its sam_rho=0\.1 was chosen for SAM, and what was given makes it ASAM .*: give sam_rho too$"
        with pytest.raises(ValueError, match=problem):
            SharpnessArguments(sharpness_config=str(tmp_path), **given)
    else:
        arguments = SharpnessArguments(sharpness_config=str(tmp_path), **given)
        assert arguments.sam_rho == given.get("sam_rho", 0.1)


def test_none_is_no_value_that_was_given(folder: str) -> None:
    assert TrainingArguments("out", sharpness_config=folder, wsam_gamma=None).wsam_gamma == 0.7


def test_positional_arguments_are_given(folder: str) -> None:
    @dataclasses.dataclass
    class Arguments(SharpnessArguments):
        pass

    assert values(Arguments(DEFAULTS["optim"], sharpness_config=folder)) == OTHER | {"optim": DEFAULTS["optim"]}


def test_a_subclass_with_defaults_of_its_own(folder: str) -> None:
    """It declares the field without the mark: a value that differs from its default was given."""

    @dataclasses.dataclass
    class Arguments(TrainingArguments):
        sam_rho: float = 0.4

    line = ["--sharpness_config", folder]
    assert command_line(*line, arguments_class=Arguments).sam_rho == 0.3
    assert command_line(*line, "--sam_rho", "0.1", arguments_class=Arguments).sam_rho == 0.1
    assert command_line(arguments_class=Arguments).sam_rho == 0.4


def test_defaults_set_on_the_parser_are_given(folder: str) -> None:
    parser = HfArgumentParser(TrainingArguments)
    parser.set_defaults(sam_rho=0.05)
    line = ["--output_dir", "out", "--sharpness_config", folder]
    assert parser.parse_args_into_dataclasses(line, look_for_args_file=False)[0].sam_rho == 0.05


def test_a_config_that_changes_nothing_is_noted(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    none_by_default = {"wsam_gamma": 0.6, "sam_target_modules": "last"}
    changed = dataclasses.replace(TrainingArguments("out"), sharpness_config=folder, **none_by_default)
    assert changed.sam_rho == DEFAULTS["sam_rho"]
    assert "changes nothing: all of its arguments were given explicitly as well" in caplog.text
    caplog.clear()
    given = {**OTHER, "wsam_gamma": 0.6}
    assert values(SharpnessArguments(**given, sharpness_config=folder)) == given
    assert "changes nothing: all of its arguments were given explicitly as well" in caplog.text


def test_a_copy_does_not_load_again(folder: str) -> None:
    arguments = TrainingArguments("out", sharpness_config=folder, sam_rho=0.05)
    shutil.rmtree(folder)
    again = TrainingArguments(**arguments.to_dict())
    assert again.to_dict() == arguments.to_dict()
    assert values(again) == OTHER | {"sam_rho": 0.05}


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    parser = HfArgumentParser(SharpnessArguments)
    namespace = parser.parse_args([])
    assert {getattr(namespace, name) for name in DEFAULTS} == {None}
    text = " ".join(parser.format_help().split())
    for default in ("0.05", "False", "epoch", "global", "auto", "21"):
        assert f"(default: {default})" in text
    assert vars(parser.parse_args_into_dataclasses([], look_for_args_file=False)[0]) == vars(SharpnessArguments())


# What is refused


def content(**entries: Any) -> bytes:
    return json.dumps({"format_version": 1} | entries).encode()


REFUSED = [
    (b"", "is not valid JSON"),
    (b"\x80\x04\x95", "is not valid JSON"),  # a pickle
    (b"optim: wsam", "is not valid JSON"),
    (b"[]", "is a mapping of arguments, not \\[\\]"),
    (b"[" * 60_000, "nested too deeply"),
    (
        b'{"format_version": 1, "optim": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001,
        "nested too deeply|optim=.* is not valid",
    ),
    (b" " * 65_537, "is larger than 64 KiB"),
    (b'{"format_version": 1, "optim": "sam", "optim": "wsam"}', "the key 'optim' stands twice"),
    (b'{"format_version": 1, "sam_rho": NaN}', "NaN is not valid"),
    (b'{"format_version": 1, "sam_rho": -Infinity}', "-Infinity is not valid"),
    (b'{"format_version": 1, "sam_rho": 1e999}', "'1e999' is not valid: too long or too large"),
    (b'{"format_version": 1, "sam_steps": ' + b"9" * 5000 + b"}", "is not valid: too long or too large"),
    (b"{}", "format_version=None is not valid"),
    (content(format_version=True), "format_version=True is not valid"),
    (content(format_version="1"), "format_version='1' is not valid"),
    (content(format_version=0), "format_version=0 is not valid"),
    (
        content(format_version=2, hf_sharpness_version="9.1", new=[]),
        "format_version=2 is of a later hf_sharpness .* '9.1': pip install -U hf_sharpness",
    ),
    (
        content(sam_roh=1),
        "the key 'sam_roh' is not allowed: did you mean 'sam_rho'\\? remove it; a config can set optim",
    ),
    (content(output_dir="/"), "the key 'output_dir' is not allowed"),
    (content(hub_token="x"), "the key 'hub_token' is not allowed"),
    (content(sharpness_config="user/other"), "the key 'sharpness_config' is not allowed"),
    (content(__class__="x"), "the key '__class__' is not allowed"),
    ('{"format_version": 1, "\x1b[31mred‮": 1}'.encode(), "is not valid JSON"),
    (content(**{"\x1b[31mred‮": 1}), r"the key '\\x1b\[31mred\\u202e' is not allowed"),
    (content(paper=["x"]), "paper=\\['x'\\] is not valid: must be a string"),
    (content(hf_sharpness_version=1), "hf_sharpness_version=1 is not valid: must be a string"),
    (content(optim=["sam"]), "optim=\\['sam'\\] is not valid: must be a string"),
    (content(optim="sgdd"), "optim='sgdd' is not known: must be one of sam, wsam, xsam"),
    (content(optim="x" * 60_000), "optim='x+\\.\\.\\.x+' is not valid"),
    (content(base_optim="sam"), "base_optim='sam' is not known"),
    (content(sam_rho="0.1"), "sam_rho='0.1' is not valid: must be a number"),
    (content(sam_rho=True), "sam_rho=True is not valid: must be a number"),
    (content(sam_rho=None), "sam_rho=None is not valid: must be a number"),
    (content(sam_rho=-0.1), "sam_rho=-0.1 is not valid: must be a finite number >= 0"),
    (content(sam_adaptive=1), "sam_adaptive=1 is not valid: must be true or false"),
    (content(sam_steps=1.0), "sam_steps=1.0 is not valid: must be a whole number"),
    (content(sam_steps=10**9), "sam_steps=1000000000 is too large for a config: must be at most 1000"),
    (content(xsam_alpha_points=10**9), "is too large for a config: must be at most 10000"),
    (content(sam_scope={}), "sam_scope={} is not valid: must be a string"),
    (content(wsam_gamma=1), "wsam_gamma=1 is not valid: must be a number with 0 <= gamma < 1"),
    (content(xsam_refresh="²"), "xsam_refresh='²' is not valid: must be 'epoch' or"),
    (content(optim="xsam", sam_scope="device"), "sam_scope='device' is not defined for optim='xsam'"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_one_clear_error(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^the file: .*{problem}") as caught:
        parse_config(SharpnessArguments, text, "the file")
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()


def test_a_part_of_the_arguments_is_enough() -> None:
    assert parse_config(SharpnessArguments, content(optim="sam", sam_rho=1), "the file") == {
        "optim": "sam",
        "sam_rho": 1,
    }
    assert parse_config(SharpnessArguments, content(xsam_refresh="12"), "the file") == {"xsam_refresh": 12}
    assert parse_config(SharpnessArguments, content(wsam_gamma=None, paper=None), "the file") == {"wsam_gamma": None}


def test_what_a_name_may_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "too-large.json").write_bytes(b" " * 70_000)
    with pytest.raises(OSError, match="this folder holds no sharpness_config"):
        SharpnessArguments.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"too-large\.json: is larger than 64 KiB"):
        SharpnessArguments(sharpness_config=str(tmp_path / "too-large.json"))
    for name in (
        "a/b/c",
        "./missing",
        str(tmp_path / "missing"),
        "missing.json",
        "user/../x",
        "~/x",
        "user/repo\0",
        "@v1",
    ):
        with pytest.raises(ValueError, match="is no local file or folder, and cannot be a repo on the Hub"):
            SharpnessArguments.from_pretrained(name)
    with pytest.raises(ValueError, match="user/repo@: names no revision after '@'"):
        SharpnessArguments.from_pretrained("user/repo@")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SharpnessArguments(optim="sam").save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="names nothing"):
        SharpnessArguments.from_pretrained(name)
    with pytest.raises(ValueError, match="names nothing"):
        command_line("--sharpness_config", name)
    assert SharpnessArguments.from_pretrained(".").optim == "sam"


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = SharpnessArguments(optim="sam").save_pretrained(tmp_path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert SharpnessArguments.from_pretrained(path).optim == "sam"
