"""A method that was asked for and never worked ends in an exit status of its own, with the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCRIPTS, Finished, Launch

from hf_sharpness.run import reports

Process = Callable[..., Finished]


@pytest.mark.parametrize("flag", [["--optim", "wsam"], ["--optim=wsam"], ["--optimizer", "sam"]])
def test_ignored(flag: list[str], launch: Launch) -> None:
    done = launch("hard_coded.py", *flag, common=False)
    assert done.status == 3, done.log
    assert done.log.count("optimizer Adafactor") == 2
    assert "all 3 optimizer steps were made without it (optim=adafactor)" in done.log
    assert f"hf-sharpness run --set optim={'sam' if 'sam' in flag else 'wsam'}" in done.log


@pytest.mark.parametrize(
    "arguments",
    [
        ["--optim", "adamw_torch"],
        ["--optim", "unknown"],
        ["--name", "wsam"],
        ["--optim", "wsam", "--eval"],
        ["--optim", "wsam", "--help"],
    ],
)
def test_no_failure(arguments: list[str], launch: Launch) -> None:
    """No method was asked for, or no training."""
    done = launch("hard_coded.py", *arguments, common=False)
    assert done.status == 0, done.log
    assert "hf-sharpness run" not in done.log


def test_the_scripts_own_failure_comes_first(launch: Launch) -> None:
    done = launch("hard_coded.py", "--optim", "wsam", "--status", "7", common=False)
    assert done.status == 7
    assert "hf-sharpness run" not in done.log


@pytest.mark.parametrize("given", [{"do_eval": True}, {}, {"wsam_gamma": 0.0}])
def test_taken_up(given: dict[str, object], launch: Launch) -> None:
    """gamma 0 makes no further pass, and was asked for."""
    done = launch("tiny.py", optim="wsam", **given)
    assert done.status == 0, done.log


def test_a_finished_resume(launch: Launch) -> None:
    first = launch("tiny.py", optim="wsam", save_strategy="steps", save_steps=3)
    again = launch("tiny.py", optim="wsam", resume_from_checkpoint=first.output / "checkpoint-3", output="again")
    assert first.status == again.status == 0, again.log


def test_a_stock_choice_of_the_script_after_parsing(launch: Launch, tmp_path: Path) -> None:
    """The class knows the flag, and the script goes back on it."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.append({str(SCRIPTS)!r}); import tiny, transformers\n"
        "init = transformers.Trainer.__init__\n"
        "def changed(self, model, args, **rest):\n    args.set_optimizer('sgd')\n    init(self, model, args, **rest)\n"
        "transformers.Trainer.__init__ = changed\ntiny.main()\n"
    )
    done = launch(str(script), optim="wsam")
    assert done.status == 3, done.log
    assert "made without it (optim=sgd)" in done.log


def report(folder: Path, name: str, steps: int, optim: str, with_method: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reports.REPORTS, str(folder))
    reports.write(name, steps, optim, with_method)


def test_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = reports.verdict
    assert verdict(str(tmp_path), ["wsam"], is_command=False) is None
    assert verdict(str(tmp_path), ["adamw_torch", ""], is_command=True) is None
    assert verdict(str(tmp_path), [], is_command=True) is None
    lost = verdict(str(tmp_path), ["wsam"], is_command=True)
    assert all(cause in lost for cause in ("`-E`", "`-I`", "-S", "PYTHONPATH is overwritten", "-m hf_sharpness.run"))
    (tmp_path / "1.missing").write_text("/usr/bin/python: No module named 'hf_sharpness'")
    assert "Not able to use hf_sharpness: /usr/bin/python: No" in verdict(str(tmp_path), ["wsam"], is_command=True)

    report(tmp_path, "made", 0, "wsam", False, monkeypatch)
    assert verdict(str(tmp_path), ["wsam"], is_command=True) is None
    report(tmp_path, "stock", 5, "adamw_torch", False, monkeypatch)
    assert "all 5 optimizer steps" in verdict(str(tmp_path), ["wsam"], is_command=True)
    inner = tmp_path / "inner"
    inner.mkdir()
    report(inner, "method", 5, "wsam", True, monkeypatch)
    assert verdict(str(tmp_path), ["wsam"], is_command=True) is None


def test_folders_lie_within_each_other_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reports.REPORTS, raising=False)
    with reports.folder() as outer:
        assert os.stat(outer).st_mode & 0o77 == 0
        with reports.folder() as inner:
            assert Path(inner).parent == Path(outer)
            assert os.environ[reports.REPORTS] == inner
        assert os.environ[reports.REPORTS] == outer
    assert not Path(outer).exists()
    assert reports.REPORTS not in os.environ


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (["--optim", "wsam"], ["wsam"]),
        (["-optim=wsam"], ["wsam"]),
        (["training.optim=wsam", "--name", "sam"], ["wsam"]),
        (["optim", "wsam"], []),
        (["--optim"], [""]),
        (["--base_optim", "adafactor", "--optim_args", "x"], ["adafactor"]),
    ],
)
def test_named_choices(arguments: list[str], choices: list[str]) -> None:
    assert reports.named_choices(arguments) == choices
