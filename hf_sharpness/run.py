"""Run a script written for transformers' Trainer with sharpness-aware steps, as it is.

    hf-sharpness run script.py ARGS...              python -m hf_sharpness.run script.py ARGS...
    hf-sharpness run -m package.module ARGS...      accelerate launch -m hf_sharpness.run script.py ARGS...

Trainer, Seq2SeqTrainer, TrainingArguments and Seq2SeqTrainingArguments are this package's for the script and all that
it imports, so its arguments take `--optim wsam` and every sharpness flag. All else is as `python script.py ARGS...`
would have it, and with one of transformers' own optimizers so is the result.
"""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any

from hf_sharpness.patching import install

Program = tuple[Callable[[], CodeType], dict[str, Any]]
"""What compiles the program, and the attributes of its module."""


class ProgramError(Exception):
    """The program cannot be started; the second argument is the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the arguments name; what it raises goes through, with a traceback that begins in it.

    Args:
        argv: ``SCRIPT ARGS...`` or ``-m MODULE ARGS...``. Default None: the arguments of the process.

    Returns:
        The exit status: 0, or what Python's own would be for a program that cannot be started.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        if arguments[0] == "-m":
            if len(arguments) == 1:
                raise ProgramError("-m: the name of a module is missing", 2)
            _set_first_path(os.getcwd())
            sys.argv[:] = arguments[1:]
            program = _find_module(arguments[1])
            sys.argv[0] = program[1]["__file__"]
        elif arguments[0].startswith("-"):
            raise ProgramError(f"unknown option {arguments[0]!r}: the script comes first, its arguments after it", 2)
        else:
            program = _find_script(arguments[0])
            _set_first_path(os.path.dirname(os.path.realpath(arguments[0])))
            sys.argv[:] = arguments
    except ProgramError as error:
        message, status = error.args
        print(f"hf-sharpness run: error: {message}", file=sys.stderr)
        return status
    install()
    _execute(*program)
    return 0


def _find_script(script: str) -> Program:
    path = os.path.abspath(script)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise ProgramError(f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}", 2) from None
    attributes = {"__file__": path, "__loader__": SourceFileLoader("__main__", path), "__cached__": None}
    return lambda: compile(source, path, "exec", dont_inherit=True), attributes


def _find_module(name: str) -> Program:
    spec = _module_spec(name)
    if spec.submodule_search_locations is not None:
        try:
            spec = _module_spec(f"{name}.__main__")
        except ProgramError as error:
            raise ProgramError(f"{error.args[0]}; {name!r} is a package and cannot be directly executed", 1) from None
    attributes = {
        "__file__": spec.origin,
        "__loader__": spec.loader,
        "__cached__": spec.cached,
        "__spec__": spec,
        "__package__": spec.parent,
    }
    return lambda: spec.loader.get_code(spec.name), attributes


def _module_spec(name: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a package was found, and its own imports fail
        spec = None
    if spec is None:
        raise ProgramError(f"No module named {name}", 1)
    return spec


def _set_first_path(directory: str) -> None:
    """Put the program's directory where Python put that of the command."""
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        sys.path[0] = directory


def _execute(compiled: Callable[[], CodeType], attributes: dict[str, Any]) -> None:
    """Run the program as ``__main__``, which it remains until the process ends."""
    program = ModuleType("__main__")
    program.__dict__.update(__builtins__=builtins, **attributes)
    sys.modules["__main__"] = program
    try:
        exec(compiled(), program.__dict__)
    except BaseException:
        sys.excepthook = _without_own_frames(sys.excepthook)
        raise


ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _without_own_frames(excepthook: ExceptHook) -> ExceptHook:
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        entry = traceback
        while entry is not None and entry.tb_frame.f_code is not _execute.__code__:
            entry = entry.tb_next
        if entry is not None:
            traceback = entry.tb_next
            while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
                traceback = traceback.tb_next  # the program did not compile
            error.__traceback__ = traceback
        excepthook(kind, error, traceback)

    return hook


if __name__ == "__main__":
    sys.exit(main())
