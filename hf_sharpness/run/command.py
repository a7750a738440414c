"""Run a program written for transformers' Trainer with sharpness-aware steps, as it is.

    hf-sharpness run script.py ARGS...              python -m hf_sharpness.run script.py ARGS...
    hf-sharpness run -m package.module ARGS...      accelerate launch -m hf_sharpness.run script.py ARGS...
    hf-sharpness run trl sft ARGS...                hf-sharpness run accelerate launch script.py ARGS...
    hf-sharpness run --set optim=wsam --set sam_rho=0.02 script.py ARGS...

Trainer, Seq2SeqTrainer, TrainingArguments and Seq2SeqTrainingArguments are this package's for the program, all that it
imports and the Python processes that it starts, so its arguments take `--optim wsam` and every sharpness flag. All else
is as `python script.py ARGS...` would have it, and with one of transformers' own optimizers so is the result.

--set NAME=VALUE sets an argument in every TrainingArguments that is made, whatever the program says, for programs that
do not take it as a flag. With a method as optim, the program's own optim becomes base_optim.

The exit status is the program's; 3 if that is 0 but `--optim` or `--set` named a method and no optimizer step was made
with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import environment, reports, settings
from .classes import install
from .program import find_command, is_python, run_command, run_module, run_path, without_own_frames


class UsageError(Exception):
    """The program cannot be started; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the arguments name; what it raises goes through, with a traceback that begins in it.

    Args:
        argv: ``[--set NAME=VALUE ...] PROGRAM ARGS...``, where PROGRAM is a script, ``-m MODULE`` or a command on
            PATH. Default None: the arguments of the process.

    Returns:
        The exit status: 0, or the command's; 2 for a program that cannot be started; 3 if it chose a method and made
        all of its steps without.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        given, program = _settings(arguments)
        command = _command(program)
    except UsageError as error:
        print(f"hf-sharpness run: error: {error}", file=sys.stderr)
        return 2
    environment.prepare(given)
    with reports.folder() as place:
        status = _run_here(program) if command is None else _run_elsewhere(command, program[1:])
        if status or {"-h", "--help"} & set(program):
            return status
        # A launcher does not import transformers: the processes that it starts do.
        elsewhere = command is not None or "transformers" not in sys.modules
        problem = reports.verdict(place, [*reports.named_choices(program), given.get("optim", "")], elsewhere)
    if problem is None:
        return 0
    if os.environ.get("RANK", "0") == "0":
        print(f"hf-sharpness run: error: {problem}", file=sys.stderr)
    return 3


def _settings(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """What ``--set`` gives, and the program with its arguments."""
    given = {}
    while arguments and arguments[0].partition("=")[0] == "--set":
        text = arguments[0].partition("=")[2] or "".join(arguments[1:2])
        arguments = arguments[1 if "=" in arguments[0] else 2 :]
        try:
            name, given[name] = settings.parse(text)
        except ValueError as error:
            raise UsageError(error) from None
    if not arguments:
        raise UsageError("the program is missing: it comes after --set NAME=VALUE")
    return given, arguments


def _command(program: list[str]) -> str | None:
    """The file to start as a process of its own; None for Python that runs in this one."""
    name = program[0]
    if name == "-m":
        if len(program) == 1:
            raise UsageError("-m: the name of a module is missing")
        return None
    if name.startswith("-"):
        raise UsageError(f"unknown option {name!r}: the script comes first, its arguments after it")
    on_path = find_command(name)
    if (
        os.path.isfile(name)
        or os.path.exists(os.path.join(name, "__main__.py"))
        or (os.path.exists(name) and not on_path)
    ):
        if on_path:
            print(f"hf-sharpness run: {name} in the current folder is run, not {on_path}", file=sys.stderr)
        return None if is_python(name) else os.path.join(os.getcwd(), name)
    if on_path is None:
        raise UsageError(f"can't open file {name!r}: there is no such file, and no such command on PATH")
    return on_path


def _run_here(program: list[str]) -> int:
    """Run Python in this process; returns where it ends well."""
    install()
    try:
        if program[0] == "-m":
            run_module(program[1], program[2:])
        else:
            run_path(program[0], program[1:])
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    except BaseException:
        sys.excepthook = without_own_frames(sys.excepthook)
        raise
    return 0


def _run_elsewhere(command: str, arguments: list[str]) -> int:
    try:
        return run_command(command, arguments)
    except OSError as error:  # not executable; no program
        print(f"hf-sharpness run: error: can't start {command!r}: {error.strerror}", file=sys.stderr)
        return 2
