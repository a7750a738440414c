"""What Trainers report of their steps to the `hf-sharpness run` that started them, and its verdict on them.

A program may ignore `--optim wsam`, and a process that it starts may lack this package's classes: both train with the
base optimizer alone, and end well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .environment import REPORTS

_CHOICE = re.compile(r"(--?)?(?:[\w.-]+[._-])?optim(?:izer)?(?:=(.*))?", re.DOTALL)
"""A flag (`--optim`, `--optimizer`, `training.optim=`) that may name a method: its dashes, its value after a `=`."""


@contextmanager
def folder() -> Iterator[str]:
    """A private folder, named in the environment; within that of the `hf-sharpness run` that started this one."""
    outer = os.environ.get(REPORTS)
    if outer is not None and not os.path.isdir(outer):  # it has ended
        outer = None
    place = os.environ[REPORTS] = tempfile.mkdtemp(prefix="hf-sharpness-", dir=outer)
    try:
        yield place
    finally:
        if outer is not None:
            os.environ[REPORTS] = outer
        else:
            del os.environ[REPORTS]
            shutil.rmtree(place, ignore_errors=True)


def write(name: str, steps: int, optim: str, with_method: bool) -> None:
    """Report a Trainer's steps, in place of what was reported under the same name.

    Args:
        name: of the Trainer, in this process.
        steps: optimizer steps that it made.
        optim: its arguments' optimizer.
        with_method: whether ``optim`` is a sharpness-aware method, and was at work.
    """
    place = os.environ.get(REPORTS)
    if place:
        with suppress(OSError):  # whoever asked for the report has ended
            text = json.dumps({"steps": steps, "optim": optim, "with_method": with_method})
            Path(place, f"{os.getpid()}-{name}.json").write_text(text, encoding="utf-8")


def named_choices(arguments: Sequence[str]) -> list[str]:
    """The values of flags such as `--optim` on a command line."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        match = _CHOICE.fullmatch(argument)
        if match and match[2] is not None:
            found.append(match[2])
        elif match and match[1]:
            found.append(following)
    return found


def verdict(place: str, choices: Iterable[str], is_command: bool) -> str | None:
    """What went wrong, for the user; None where nothing did.

    Args:
        place: the folder of the reports.
        choices: the values of `--optim` on the command line.
        is_command: whether another program was to start the training.
    """
    choices = list(choices)
    if not choices:
        return None
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in Path(place).rglob("*.json")]
    if any(report["with_method"] for report in reports):
        return None
    steps = sum(report["steps"] for report in reports)
    if (reports and not steps) or (not reports and not is_command):  # an evaluation; no training at all
        return None
    from ..methods.registry import METHODS, load_entry_points  # takes a second or two

    load_entry_points()
    method = next((choice for choice in choices if choice in METHODS), None)
    if method is None:
        return None
    if steps:
        used = ", ".join(sorted({report["optim"] for report in reports if report["steps"]}))
        return (
            f"{method!r} was asked for, but all {steps} optimizer steps were made without it (optim={used}): the "
            f"program does not hand the flag on to its TrainingArguments. Set it from outside: hf-sharpness run --set "
            f"optim={method} PROGRAM ..."
        )
    missing = sorted({path.read_text(encoding="utf-8") for path in Path(place).rglob("*.missing")})
    return f"{method!r} was asked for, but no process that the program started reported a sharpness-aware step. " + (
        f"Not able to use hf_sharpness: {'; '.join(missing)}. Install hf_sharpness and what it needs there."
        if missing
        else "The classes come to new processes through PYTHONPATH, and are lost under `python -S`, `-E` or `-I`, "
        "where PYTHONPATH is overwritten (write PYTHONPATH=src:$PYTHONPATH), and on other machines. Start the "
        "training itself with `python -m hf_sharpness.run`: LAUNCHER ... -m hf_sharpness.run script.py ..."
    )
