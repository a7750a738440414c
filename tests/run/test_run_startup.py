"""The sitecustomize that brings the classes to Python processes started anew, and what it leaves alone."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_sharpness.run import environment
from hf_sharpness.run.environment import STARTUP

SEEN = (
    "import sys; print(sys.path); "
    "print([name for name in sys.modules if name.split('.')[0] in ('hf_sharpness', 'torch', 'transformers')])"
)
TOOL = "import sys\nprint('read', __file__, __name__, __spec__.name, sys.modules[__name__].__file__ == __file__)\n"
CHAINING = (  # as tracing tools do it: step aside and have the next one imported
    TOOL + "import importlib, os\nhere = os.path.dirname(os.path.abspath(__file__))\n"
    "path = [p for p in sys.path if os.path.abspath(p) != here]\n"
    "sys.path, before = path, sys.path\ndel sys.modules['sitecustomize']\n"
    "try:\n    import sitecustomize\nexcept ImportError:\n    pass\nfinally:\n    sys.path = before\n"
)


def python(*options: str, path: list[str] | None, code: str = SEEN, executable: str = sys.executable) -> str:
    """What Python printed, PYTHONPATH being the given folders."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", environment.REPORTS)}
    if path is not None:
        variables["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [executable, *options, "-c", code],
        env=variables,
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def tool(tmp_path: Path) -> str:
    """A folder with the sitecustomize.py of another tool."""
    return made(tmp_path / "tool", TOOL)


def made(folder: Path, text: str, name: str = "sitecustomize") -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    return str(folder)


def test_nothing_is_imported_and_nothing_left_on_the_path() -> None:
    assert {path.name for path in Path(STARTUP).iterdir()} <= {"sitecustomize.py", "__pycache__"}
    plain, ours = python(path=None), python(path=[STARTUP])
    assert ours == plain
    assert ours.endswith("[]\n")


def test_the_next_one_is_read(tool: str) -> None:
    plain, ours = python(path=[tool]), python(path=[STARTUP, tool])
    assert plain.startswith("read ")
    assert ours == plain


@pytest.mark.parametrize("order", ["ours first", "ours second", "ours between"])
def test_no_recursion(order: str, tool: str, tmp_path: Path) -> None:
    """With a tool that has the next one read too, each is read once."""
    chaining = made(tmp_path / "chaining", CHAINING)
    path = {
        "ours first": [STARTUP, chaining, tool],
        "ours second": [chaining, STARTUP, tool],
        "ours between": [chaining, STARTUP, chaining, tool],
    }[order]
    shown = [line for line in python(path=path).splitlines() if line.startswith("read ")]
    assert [line.split()[1] for line in shown] == [f"{chaining}/sitecustomize.py", f"{tool}/sitecustomize.py"]


def test_an_error_in_the_next_one_is_its_own(tmp_path: Path) -> None:
    broken = made(tmp_path / "broken", "raise ImportError('mine')\n")
    shown = []
    for path in [broken], [STARTUP, broken]:
        done = subprocess.run(
            [sys.executable, "-c", "print(3)"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        shown.append((done.returncode, done.stdout, done.stderr.splitlines()[-1]))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("option", ["-S", "-E", "-I"])
def test_not_read(option: str) -> None:
    """The options under which the verdict names them as the cause."""
    assert "Watch" not in python(option, path=[STARTUP], code="import sys; print(sys.meta_path)")
    assert "Watch" in python(path=[STARTUP], code="import sys; print(sys.meta_path)")


BASE = str(Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info)))
"""The Python that this environment was made of, without what is installed in it."""


@pytest.mark.parametrize("missing", ["torch", "accelerate", "hf_sharpness", "old transformers", "transformers"])
def test_where_something_is_missing(missing: str, tmp_path: Path) -> None:
    """`import transformers` does what it would do, and the waiting `hf-sharpness run` can say why."""
    modules, reports = tmp_path / "modules", tmp_path / "reports"
    reports.mkdir()
    for name in {"torch", "accelerate", "transformers"} - {missing}:
        made(modules, "VALUE = 7\n", name)
    info = modules / "transformers-4.0.dist-info"
    info.mkdir()
    version = "4.57.6" if missing == "old transformers" else "5.1.0"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    code = (
        f"import os, sys; os.environ['{environment.REPORTS}'] = {str(reports)!r}\n"
        "try:\n    import transformers; print(transformers.VALUE)\n"
        "except ImportError as error:\n    print(error)\n"
        "print([name for name in sys.modules if name.startswith('hf_sharpness')])"
    )
    shown = python(path=[STARTUP, str(modules)], code=code, executable=BASE)
    expected = "No module named 'transformers'" if missing == "transformers" else "7"
    assert shown.splitlines() == [expected, "[]"]
    (report,) = reports.iterdir()
    cause = "transformers 4.57.6 is older than 5.0" if missing == "old transformers" else missing
    assert (cause if missing != "transformers" else "hf_sharpness") in report.read_text()
    assert BASE in report.read_text()


def test_oldest_transformers() -> None:
    """As in the package's requirements."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    text = Path(STARTUP, "sitecustomize.py").read_text()
    oldest = text.partition("OLDEST_TRANSFORMERS = ")[2].split()[0]
    assert f"transformers>={oldest}.0" in setup["options"]["install_requires"].split()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "{startup}"),
        ("", "{startup}"),
        ("src", "{startup}:src"),
        ("src:", "{startup}:src:"),  # the user's own empty entry means the current folder
        ("{startup}:src", "{startup}:src"),
        ("tool:{startup}", "tool:{startup}"),
    ],
)
def test_pythonpath(before: str | None, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No empty entry is made, and our own is there once."""
    monkeypatch.setenv("PYTHONPATH", "")  # put back at the end even where there is none: `delenv` alone notes nothing
    if before is None:
        monkeypatch.delenv("PYTHONPATH")
    else:
        monkeypatch.setenv("PYTHONPATH", before.format(startup=STARTUP).replace(":", os.pathsep))
    environment.prepare({})
    assert os.environ["PYTHONPATH"] == after.format(startup=STARTUP).replace(":", os.pathsep)
    assert not any("site-packages" in entry for entry in after.split(":"))
