"""sharpness_config.json in a folder: what was given beside it overrides it, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from config_values import DEFAULTS, OTHER, command_line, values
from transformers import HfArgumentParser

from hf_sharpness import Seq2SeqTrainingArguments, SharpnessArguments, TrainingArguments


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
        ({"base_optim": "sgd"}, {"base_optim": "adamw_torch"}, None),
        ({"base_optim": "adamw_torch"}, {"base_optim": "sgd"}, None),
        ({"base_optim": "adamw_torch"}, {"base_optim": "sgd", "optim_args": "momentum=.9"}, ("coupled", "decoupled")),
        ({"base_optim": "sgd"}, {"base_optim": "adamw_torch", "optim_args": "momentum=.9"}, ("decoupled", "coupled")),
        ({"wsam_mode": "coupled"}, {"base_optim": "sgd"}, None),
        ({"base_optim": "sgd"}, {"wsam_mode": "decoupled"}, ("coupled", "decoupled")),
        ({"base_optim": "adafactor"}, {"base_optim": "adamw_torch", "sam_rho": 0.1}, None),
        ({"wsam_mode": "coupled"}, {"optim": "sam", "wsam_mode": "decoupled"}, None),
    ],
)
def test_one_modes_gamma_is_not_the_others(
    saved: dict[str, Any], given: dict[str, Any], meanings: tuple[str, str] | None, tmp_path: Path
) -> None:
    kind = SharpnessArguments
    if "optim_args" in given:
        kind, given = TrainingArguments, {"output_dir": "out", "use_cpu": True, **given}
    SharpnessArguments(optim="wsam", wsam_gamma=0.7, **saved).save_pretrained(tmp_path)
    if meanings is None:
        arguments = kind(sharpness_config=str(tmp_path), **given)
        assert arguments.wsam_gamma == given.get("wsam_gamma", 0.7)
        return
    before, after = meanings
    problem = f"its wsam_gamma=0.7 was chosen for the {before} mode, and what was given makes it the {after} mode"
    with pytest.raises(ValueError, match=f"^sharpness_config='.*': {problem}: give wsam_gamma too$"):
        kind(sharpness_config=str(tmp_path), **given)


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
