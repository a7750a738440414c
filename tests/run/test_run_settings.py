"""`--set NAME=VALUE`, for scripts that take no such flag."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conftest import SCRIPTS, Finished, Launch

from hf_sharpness.run import settings

Process = Callable[..., Finished]


def test_beats_the_script(launch: Launch) -> None:
    """In every TrainingArguments; the script's optimizer becomes the base; said once."""
    sets = ("--set", "optim=wsam", "--set=sam_rho=0.02", "--set", "learning_rate=3e-2")
    done = launch("hard_coded.py", before=sets, common=False)
    assert done.status == 0, done.log
    assert done.log.count("optimizer Adafactor wsam 0.03") == 2
    assert done.log.count("'perturbation_norm': '0.02'") == 3
    assert done.log.count("hf-sharpness run --set: ") == 1
    said = next(line for line in done.log.splitlines() if line.startswith("hf-sharpness run --set: "))
    assert said.split(": ", 1)[1] == (
        "optim='wsam' in place of 'adafactor', sam_rho=0.02 in place of 0.05, "
        "learning_rate=0.03 in place of 0.01, base_optim='adafactor' (the program's optim)"
    )


def test_base_optim_given(launch: Launch) -> None:
    done = launch("hard_coded.py", before=("--set", "optim=sam", "--set", "base_optim=sgd"), common=False)
    assert done.status == 0, done.log
    assert done.log.count("optimizer SGD sam 0.01") == 2


def test_beats_the_flags(launch: Launch) -> None:
    """Also one that equals the default, and above a config."""
    flags = launch("tiny.py", output="flags", optim="wsam", sam_rho=0.05, bf16=False)
    done = launch("tiny.py", before=("--set", "sam_rho=0.05", "--set", "bf16=false"), optim="wsam", sam_rho=0.3, bf16=1)
    assert flags.status == done.status == 0, done.log
    assert done.weights == flags.weights
    written = json.loads((done.output / "sharpness_config.json").read_text())
    (done.output / "sharpness_config.json").write_text(json.dumps({**written, "sam_rho": 0.3}))
    config = launch("tiny.py", before=("--set", "sam_rho=0.05"), output="config", sharpness_config=done.output)
    assert config.status == 0, config.log
    assert config.weights == flags.weights


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sam_roh=0.1", "--set sam_roh=0.1: TrainingArguments has no such argument; did you mean 'sam_rho'?"),
        ("max_steps=many", "--set max_steps=many: argument --max_steps/--max-steps: invalid int value: 'many'"),
        ("optim=wsan", "--set optim=wsan: argument --optim: invalid choice: 'wsan'"),
        ("sam_rho=-1", "sam_rho=-1.0 is not valid"),
    ],
)
def test_errors_of_values(given: str, message: str, launch: Launch) -> None:
    done = launch("hard_coded.py", before=("--set", given), common=False)
    assert done.status == 1
    assert message in done.log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optim"], "--set optim: must be NAME=VALUE"),
        (["--set", "a b=1", "script.py"], "--set a b=1: must be NAME=VALUE"),
        (["--set"], "--set : must be NAME=VALUE"),
        (["--set", "optim=wsam"], "the program is missing"),
    ],
)
def test_errors_of_the_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from hf_sharpness.run import main

    assert main(arguments) == 2
    assert f"hf-sharpness run: error: {message}" in capsys.readouterr().err


def test_parse() -> None:
    assert settings.parse("lr_scheduler_kwargs={'a=b': 1}") == ("lr_scheduler_kwargs", "{'a=b': 1}")


@pytest.mark.slow
def test_reaches_processes_started_anew(process: Process) -> None:
    done = process(
        "-m", "hf_sharpness.run", "--set", "optim=wsam", SCRIPTS / "starts_anew.py", "subprocess", "--use_cpu"
    )
    assert done.status == 0, done.log
    assert "optim='wsam' in place of" in done.log
