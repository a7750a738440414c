"""Runs a program: a script, a module, a folder or an archive in this process as Python would, a command beside it."""

from __future__ import annotations

import builtins
import io
import os
import pkgutil
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import FrameType, ModuleType, TracebackType
from typing import Any

PASSED_ON = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that only this process gets, and passes on to a command."""


def run_module(name: str, arguments: list[str]) -> None:
    """As ``python -m NAME ARGUMENTS``, with its errors."""
    _set_first_path(os.getcwd())
    sys.argv[:] = ["-m", *arguments]
    _new_main()
    # Private, and what `python -m` itself calls: runpy.run_module would take the module from `__main__` at the end.
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def run_path(path: str, arguments: list[str]) -> None:
    """As ``python PATH ARGUMENTS``."""
    sys.argv[:] = [path, *arguments]
    full = os.path.join(os.getcwd(), path)  # not normalised: `link/..` is not always `.`
    if pkgutil.get_importer(full) is not None:  # a folder or an archive
        if _path_begins_with_program():
            del sys.path[0]
        sys.path.insert(0, full)
        _new_main()
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return
    with io.open_code(full) as file:
        source = file.read()
    _set_first_path(os.path.dirname(os.path.realpath(full)))
    program = _new_main()
    vars(program).update(__file__=full, __loader__=SourceFileLoader("__main__", full), __cached__=None)
    exec(compile(source, full, "exec", dont_inherit=True), vars(program))


def is_python(path: str) -> bool:
    """Whether a file is for Python, as far as its first line tells; a folder or an archive is."""
    if not os.path.isfile(path):
        return True
    with open(path, "rb") as file:
        first = file.readline(1000)
    return b"python" in first if first.startswith(b"#!") else not first.startswith(b"\x7fELF")


def find_command(name: str) -> str | None:
    """The file of a command: on PATH, or beside this Python, whose environment may not be activated."""
    if os.path.dirname(name):
        return None
    return shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))


def run_command(path: str, arguments: list[str]) -> int:
    """Run a program in a process of its own and wait for it; it decides what Ctrl-C and SIGTERM mean.

    Returns:
        Its exit status; of one that a signal ended, 128 and the signal's number.

    Raises:
        OSError: it cannot be started.
    """
    process: subprocess.Popen | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        process = subprocess.Popen([path, *arguments])
        for number in early:
            process.send_signal(number)
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells both
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _new_main() -> ModuleType:
    """The module that the program runs as; it remains until the process ends."""
    program = sys.modules["__main__"] = ModuleType("__main__")
    vars(program)["__builtins__"] = builtins
    return program


def _path_begins_with_program() -> bool:
    """Whether Python put a directory of the command before its own ones."""
    return not getattr(sys.flags, "safe_path", sys.flags.isolated)


def _set_first_path(directory: str) -> None:
    """Put the program's directory where Python put that of the command."""
    if _path_begins_with_program():
        sys.path[0] = directory


ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def without_own_frames(excepthook: ExceptHook) -> ExceptHook:
    """The hook, shown tracebacks that begin in the program."""

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        entry, last = traceback, None
        while entry is not None:
            if entry.tb_frame.f_code.co_filename == __file__:
                last = entry
            entry = entry.tb_next
        if last is not None:
            error.__traceback__ = traceback = last.tb_next
        excepthook(kind, error, traceback)

    return hook
