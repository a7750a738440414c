"""docs/modes.md is what the marked tests show; the GPU script invents nothing, and docs/gpu.md says what was run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from claims import RESULTS, Claim, cell, page, verified_page
from launch import ROOT, environment


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_current() -> None:
    """Collects all tests of this folder and compares."""
    command = [sys.executable, str(ROOT / "scripts" / "mode_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_failed_test_shows_nothing(tmp_path: Path) -> None:
    """The plugin itself, on a folder of three tests: one passes, one fails, one is expected to fail."""
    for name in ("conftest.py", "claims.py", "launch.py"):
        (tmp_path / name).write_text((Path(__file__).parent / name).read_text())
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "shows = lambda mode: pytest.mark.shows(mode=mode, method='SAM', result='exact', brief=mode)\n"
        "@shows('good')\ndef test_good(): pass\n"
        "@shows('bad')\ndef test_bad(): assert False\n"
        "@pytest.mark.xfail\n@shows('hoped for')\ndef test_hoped(): assert False\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", ".", ".", "--modes-table", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    brief, whole = (tmp_path / "modes.md").read_text(), (tmp_path / "verified-modes.md").read_text()
    assert "| good | exact | – | – | – |\n" in brief
    assert "| good | exact | – | – | – | `test_three.py::test_good` |" in whole
    for text in (brief, whole):
        assert "bad" not in text
        assert "hoped for" not in text


def test_the_weakest_result_counts() -> None:
    assert cell(["exact", "within rounding"]) == "within rounding"
    assert cell([]) == "–"
    assert all(cell([result]) == result for result in RESULTS)
    claim = Claim("m", "WSAM coupled", "exact", "t")
    assert "| m | – | exact | – | – | `t` |" in verified_page([claim])
    assert "exact | – |" not in page([claim])  # not in brief


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_without_a_gpu() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_checks.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr
    assert not done.stdout


def test_the_gpu_page_says_whether_it_was_run() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    assert ("Never run yet" in text) != bool(re.search(r"on 20\d\d-\d\d-\d\d, .*with torch", text))
    assert "FAILED" not in text


@pytest.mark.slow
@pytest.mark.checked
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run scripts/gpu_checks.py")
def test_the_gpu_scripts_code_runs_on_a_cpu(monkeypatch: Any) -> None:
    """What of it does not need a GPU, so that the first run on one is not the first run of its code."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    checks = script("gpu_checks")
    whole_run = checks.modes.run

    def run(*args: Any, **kwargs: Any) -> Any:
        on_a_gpu_alone = {"fp16", "tf32"}
        return whole_run(
            *args, **{key: v for key, v in kwargs.items() if key not in on_a_gpu_alone} | {"use_cpu": True}
        )

    for module in (checks.modes, checks.exact, checks.guard):
        monkeypatch.setattr(module, "run", run)
    made = checks.table(["cpu", "masks", "bases", "measure", "zero", "quiet", "heard", "memory", "bf16"])
    assert "FAILED" not in made, made
    for shown in (
        "loop by hand | WSAM coupled",
        "out of memory in a replay | XSAM",
        "ResNet | quiet",
        "the layer named",
    ):
        assert shown in made
