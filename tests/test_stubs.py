"""The stubs of the modules that are made from the methods say what these modules have."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import hf_sharpness
from hf_sharpness import SAM, WSAM, XSAM, TrainingArguments
from hf_sharpness.methods import METHODS

PACKAGE = Path(hf_sharpness.__file__).parent
SCRIPT = PACKAGE.parent / "scripts" / "stubs.py"

needs_the_checkout = pytest.mark.skipif(not SCRIPT.exists(), reason="the script is in the checkout")


@needs_the_checkout
def test_they_are_up_to_date() -> None:
    """In a process of its own: methods that a test registers are not the package's."""
    code = (
        f"import json, runpy; made = runpy.run_path({str(SCRIPT)!r}); "
        "print(json.dumps({name: made['stub'](name) for name in made['STUBS']}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stubs = json.loads(done.stdout)
    assert stubs.keys() == {"sharpness_arguments/fields.pyi", "loop/classes.pyi", "methods/__init__.pyi"}
    for name, text in stubs.items():
        assert text == (PACKAGE / name).read_text(), f"{name}: run python scripts/stubs.py --write"


def run_mypy(folder: Path, skip: str, ignore_errors: bool, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of mypy in a folder; what lies in `skip` (of this package's imports) is taken as it comes."""
    (folder / "mypy.ini").write_text(
        f"[mypy]\nignore_errors = {ignore_errors}\nfollow_imports = silent\nignore_missing_imports = True\n"
        f"[mypy-{skip}]\nfollow_imports = skip\n"
    )
    environment = {**os.environ, "MYPYPATH": str(PACKAGE.parent)}
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_stubtest_holds_them_to_the_modules(tmp_path: Path) -> None:
    # A constructor's None stands for "not given", and no attribute is ever None for that.
    (tmp_path / "allowed").write_text(r"hf_sharpness\.sharpness_arguments\.fields\.ArgumentFields\.__init__")
    options = ["--mypy-config-file", "mypy.ini", "--allowlist", "allowed", "--concise"]
    modules = ["hf_sharpness.sharpness_arguments.fields", "hf_sharpness.loop.classes", "hf_sharpness.methods"]
    done = run_mypy(tmp_path, "torch.*,transformers.*", True, "mypy.stubtest", *modules, *options)
    assert done.returncode == 0, done.stdout + done.stderr


PROGRAM = """
import torch
from hf_sharpness import WSAM, XSAM, TrainingArguments

args = TrainingArguments("out", optim="wsam", sam_rho=0.1, wsam_gamma=0.5)
reveal_type(args.sam_rho)
reveal_type(args.wsam_gamma)
reveal_type(args.sam_adaptive)
TrainingArguments("out", sam_start=0.3, xsam_refresh=10)
TrainingArguments("out", sam_start="decay", xsam_refresh="epoch")
TrainingArguments("out", sam_rho="much")
TrainingArguments("out", sam_roh=0.1)


class Mine(TrainingArguments):
    sam_rho: float = 0.02


model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
reveal_type(XSAM(model, optimizer, rho=0.1, refresh=3, scope="global").alpha)
reveal_type(WSAM(model, optimizer, mode="coupled").method.gamma)
WSAM(model, optimizer, gama=0.5)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_a_type_checker_knows_arguments_and_classes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run_mypy(
        tmp_path, "torch.*", False, "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "program.py"
    )
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("program.py")]
    expected = [
        ('note: Revealed type is "', "float"),
        ('note: Revealed type is "', "float | None"),
        ('note: Revealed type is "', "bool"),
        ('error: Argument "sam_rho" to "TrainingArguments" has incompatible type "str"', "float"),
        ('error: Unexpected keyword argument "sam_roh" for "TrainingArguments"', "sam_rho"),
        ('note: Revealed type is "', "float | None"),
        ('note: Revealed type is "', "float | None"),
        ('error: Unexpected keyword argument "gama" for "WSAM"', "gamma"),
    ]
    lines = [line.replace("builtins.", "") for line in lines if " defined " not in line]
    assert len(lines) == len(expected), done.stdout
    for line, (start, part) in zip(lines, expected, strict=True):
        assert line.startswith(start), done.stdout
        assert part in line, done.stdout


@pytest.mark.parametrize("ours", [SAM, WSAM, XSAM])
def test_a_plain_loop_class_says_what_it_takes(ours: Any) -> None:
    """Signature and docstring are made from the method's fields."""
    method = METHODS[ours.__name__.lower()]
    parameters = inspect.signature(ours).parameters
    assert list(parameters)[:2] == ["model", "optimizer"]
    hints = get_type_hints(method)
    for name in (field.name for field in dataclasses.fields(method)):
        parameter, hint = parameters[name], hints[name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        later = name in method.without_epochs
        assert parameter.default == (None if later else getattr(method, name))
        assert parameter.annotation == (hint | None if later else hint)
        assert f"    {name}: " in ours.__doc__
    assert {"scope", "scaler", "total_steps"} <= set(parameters)
    assert (ours.__name__, ours.__module__, ours.__qualname__) == (ours.__name__, "hf_sharpness.loop", ours.__name__)
    assert getattr(sys.modules["hf_sharpness.loop"], ours.__name__) is ours


def test_every_argument_has_a_plain_default_on_the_class() -> None:
    assert (TrainingArguments.sam_rho, TrainingArguments.sam_adaptive, TrainingArguments.sam_scope) == (
        0.05,
        False,
        "global",
    )
