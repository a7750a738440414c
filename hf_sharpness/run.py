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
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
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
            sys.argv[:] = ["-m", *arguments[2:]]
            install()  # a package is imported before its module is found
            program = _find_module(arguments[1])
            sys.argv[0] = program[1]["__file__"]
        elif arguments[0].startswith("-"):
            raise ProgramError(f"unknown option {arguments[0]!r}: the script comes first, its arguments after it", 2)
        else:
            path = os.path.join(os.getcwd(), arguments[0])  # not normalised: `link/..` is not always `.`
            program = _find_application(path) or _find_script(path)
            sys.argv[:] = arguments
    except ProgramError as error:
        message, status = error.args
        print(f"hf-sharpness run: error: {message}", file=sys.stderr)
        return status
    except BaseException:  # a package of the program cannot be imported
        sys.excepthook = _without_own_frames(sys.excepthook)
        raise
    install()
    _execute(*program)
    return 0


def _find_application(path: str) -> Program | None:
    """The program of a folder or archive with a ``__main__.py``; None for any other path."""
    if pkgutil.get_importer(path) is None:
        return None
    spec = PathFinder.find_spec("__main__", [path])
    if spec is None:
        raise ProgramError(f"can't find '__main__' module in {path!r}", 1)
    if _path_begins_with_program():
        del sys.path[0]
    sys.path.insert(0, path)
    return _program_of(spec)


def _find_script(path: str) -> Program:
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise ProgramError(f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}", 2) from None
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    attributes = {"__file__": path, "__loader__": SourceFileLoader("__main__", path), "__cached__": None}
    return lambda: compile(source, path, "exec", dont_inherit=True), attributes


def _find_module(name: str) -> Program:
    spec = _module_spec(name)
    if spec.submodule_search_locations is not None:
        try:
            spec = _module_spec(f"{name}.__main__")
        except ProgramError as error:
            raise ProgramError(f"{error.args[0]}; {name!r} is a package and cannot be directly executed", 1) from None
    return _program_of(spec)


def _program_of(spec: ModuleSpec) -> Program:
    attributes = {
        "__file__": spec.origin,
        "__loader__": spec.loader,
        "__cached__": spec.cached,
        "__spec__": spec,
        "__package__": spec.parent,
    }
    return lambda: spec.loader.get_code(spec.name), attributes


def _module_spec(name: str) -> ModuleSpec:
    if name.startswith("."):
        raise ProgramError("Relative module names not supported", 1)
    package = name.rpartition(".")[0]
    if package:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{package}.".startswith(f"{error.name}."):
                raise  # the package was found, and its own imports fail
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        problem = f"Error while finding module specification for {name!r} ({type(error).__name__}: {error})"
        raise ProgramError(problem, 1) from None
    if spec is None:
        raise ProgramError(f"No module named {name}", 1)
    return spec


def _path_begins_with_program() -> bool:
    """Whether Python put a directory of the command before its own ones."""
    return not getattr(sys.flags, "safe_path", sys.flags.isolated)


def _set_first_path(directory: str) -> None:
    """Put the program's directory where Python put that of the command."""
    if _path_begins_with_program():
        sys.path[0] = directory


def _execute(compiled: Callable[[], CodeType], attributes: dict[str, Any]) -> None:
    """Run the program as ``__main__``, which it remains until the process ends."""
    program = ModuleType("__main__")
    if "__annotations__" in vars(sys.modules["__main__"]):  # as Python, of most versions, has made it
        program.__annotations__ = {}
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
        while entry is not None and entry.tb_frame.f_code.co_filename != __file__:
            entry = entry.tb_next
        if entry is not None:
            while entry is not None and entry.tb_frame.f_code.co_filename == __file__:
                entry = entry.tb_next
            error.__traceback__ = traceback = entry
        excepthook(kind, error, traceback)

    return hook


if __name__ == "__main__":
    sys.exit(main())
