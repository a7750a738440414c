"""A dataclass that gets fields late is as if it had been defined with them, in every Python that is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_sharpness.sharpness_arguments import late_fields

PROGRAM = Path(__file__).with_name("late_fields_program.py")


def pythons() -> dict[str, str]:
    """The interpreters at hand by version, as far as this package supports it: this one, on PATH, and pyenv's."""
    found = {f"3.{sys.version_info.minor}": sys.executable}
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in range(10, 20):
        candidates = [shutil.which(f"python3.{minor}"), *sorted(installed.glob(f"3.{minor}.*/bin/python"))]
        for path in filter(None, candidates):
            works = subprocess.run([path, "-c", ""], capture_output=True).returncode == 0  # pyenv's shims may not
            if works:
                found.setdefault(f"3.{minor}", str(path))
    return found


@pytest.mark.parametrize("python", pythons().values(), ids=pythons())
def test_as_if_defined_with_them(python: str) -> None:
    command = [python, "-I", str(PROGRAM), late_fields.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "all held"), done.stderr
