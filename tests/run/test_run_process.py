"""A program under `hf-sharpness run` cannot tell, and neither can its caller."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCRIPTS, Finished

Process = Callable[..., Finished]
RUNNERS = {
    "python -m": ("-m", "hf_sharpness.run"),
    "hf-sharpness": ("-c", "import sys; from hf_sharpness.cli import main; sys.exit(main())", "run"),
}


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return RUNNERS[request.param]


@pytest.mark.parametrize("ending", ["return", "raise", "chain", "exit 3", "message", "interrupt", "excepthook"])
def test_like_python(ending: str, run: tuple[str, ...], process: Process) -> None:
    """Output, traceback, warnings and exit status (a signal's too) of a script."""
    plain = process(SCRIPTS / "probe.py", *ending.split())
    ours = process(*run, SCRIPTS / "probe.py", *ending.split())
    assert (ours.status, ours.log) == (plain.status, plain.log)
    assert "[]\n" in plain.log, "nothing heavy may be imported before the script does"


@pytest.mark.usually("safe|link")
@pytest.mark.parametrize("start", ["relative", "link", "folder link", "dot", "safe"])
def test_paths(start: str, process: Process, tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(SCRIPTS / "probe.py")
    (tmp_path / "link").symlink_to(SCRIPTS)
    options = ["-P"] if start == "safe" else []
    scripts = {"link": "link.py", "folder link": "link/../scripts/probe.py", "dot": "./link/probe.py"}
    script = scripts.get(start, "scripts/probe.py")
    folder = tmp_path if start in scripts else SCRIPTS.parent
    plain = process(*options, script, folder=folder)
    ours = process(*options, "-m", "hf_sharpness.run", script, folder=folder)
    assert (ours.status, ours.log) == (plain.status, plain.log)


@pytest.mark.usually("hf-sharpness")
@pytest.mark.parametrize("name", ["probe", "package", "package.inner"])
def test_module(name: str, run: tuple[str, ...], process: Process, tmp_path: Path) -> None:
    """`-m module`, with relative imports in a package."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "near.py").write_text("VALUE = 7\n")
    inner = "import sys\nfrom .near import VALUE\nprint(VALUE, __package__, __spec__.name, sys.argv, sys.path[0])\n"
    (package / "inner.py").write_text(inner)
    (package / "__main__.py").write_text(inner)
    folder = SCRIPTS if name == "probe" else tmp_path
    plain = process("-m", name, "--flag", folder=folder)
    ours = process(*run, "-m", name, "--flag", folder=folder)
    assert ours.status == plain.status == 0, ours.log
    assert ours.log == plain.log


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["missing.py"], 2, "can't open file"),
        (["-m", "missing"], 1, "No module named missing"),
        (["-m", "json.missing.module"], 1, "No module named 'json.missing'"),
        (["-m", "email"], 1, "No module named email.__main__; 'email' is a package and cannot be directly executed"),
        (["-m", ".missing"], 1, "Relative module names not supported"),
        (["-m"], 2, "the name of a module is missing"),
        (["--optim", "wsam", "script.py"], 2, "the script comes first"),
        ([], 2, "hf-sharpness run script.py ARGS..."),
    ],
)
def test_cannot_start(command: list[str], status: int, message: str, run: tuple[str, ...], process: Process) -> None:
    """No traceback."""
    ours = process(*run, *command)
    assert ours.status == status
    assert message in ours.log
    assert "Traceback" not in ours.log
    if command and status == 1:  # it is Python's own
        plain = process(*command)
        assert (ours.status, ours.log) == (plain.status, plain.log)


@pytest.mark.parametrize("kind", ["app", "app/", "./app", "app.zip"])
@pytest.mark.parametrize("safe", [False, True] if sys.version_info >= (3, 11) else [False])  # -P
def test_application(kind: str, safe: bool, process: Process, tmp_path: Path) -> None:
    """A folder or an archive with a `__main__.py`."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "near.py").write_text("VALUE = 7\n")
    (tmp_path / "app" / "__main__.py").write_text(
        "import sys\nfrom near import VALUE\n"
        "print(VALUE, __file__, __package__, __spec__.name, sys.argv, sys.path[:2])\n1 / 0\n"
    )
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for path in (tmp_path / "app").iterdir():
            archive.write(path, path.name)
    options = ["-P"] if safe else []
    plain = process(*options, kind, "--flag")
    ours = process(*options, "-m", "hf_sharpness.run", kind, "--flag")
    assert ours.status == plain.status == 1
    assert ours.log == plain.log
    assert ours.log.startswith("7 ")


def test_a_folder_that_is_no_application(process: Process, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    plain, ours = process("app"), process("-m", "hf_sharpness.run", "app")
    assert ours.status == plain.status == 1
    assert ours.log == plain.log


@pytest.mark.parametrize("error", ["1 / 0", "import surely_missing", "raise ValueError(1)"])
def test_a_package_whose_import_fails(error: str, run: tuple[str, ...], process: Process, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(f"import sys\nprint(sys.argv)\n{error}\n")
    (tmp_path / "package" / "inner.py").write_text("")
    plain, ours = (process(*command, "-m", "package.inner", "x") for command in ((), run))
    assert ours.status == plain.status == 1
    assert ours.log == plain.log
    assert "Traceback" in ours.log


def test_a_package_that_imports_the_trainer(process: Process, tmp_path: Path) -> None:
    """It is imported before the module is found, and gets this package's class all the same."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from transformers import TrainingArguments\n")
    (tmp_path / "package" / "inner.py").write_text("from . import TrainingArguments as A\nprint(A.__module__)\n")
    ours = process("-m", "hf_sharpness.run", "-m", "package.inner")
    assert ours.log.splitlines()[-1] == "hf_sharpness.arguments", ours.log


def test_package_that_fails(process: Process, tmp_path: Path) -> None:
    """The package's own error, not one about the module."""
    (tmp_path / "broken.py").write_text("import surely_missing\n")
    ours = process("-m", "hf_sharpness.run", "-m", "broken")
    assert ours.status == 1
    assert "ModuleNotFoundError: No module named 'surely_missing'" in ours.log


def test_does_not_compile(process: Process, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("x = = 1\n")
    plain, ours = process("script.py"), process("-m", "hf_sharpness.run", "script.py")
    assert (ours.status, ours.log) == (plain.status, plain.log)


def test_help(run: tuple[str, ...], process: Process) -> None:
    ours = process(*run, "--help")
    assert ours.status == 0
    assert "accelerate launch -m hf_sharpness.run" in ours.log
