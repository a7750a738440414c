"""Interrupts at every line that code comes past."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch

import hf_sharpness

TORCHS = (overrides.__file__, _python_dispatch.__file__)
PACKAGE = str(Path(hf_sharpness.__file__).parent)


class Interrupt:
    """Raises when the n-th line of some files, or functions in them, is about to run."""

    def __init__(self, number: int, files: tuple[str, ...], functions: Collection[str] = ()) -> None:
        self.left, self.files, self.functions = number, files, functions
        self.raised = False

    def __enter__(self) -> Interrupt:
        self.before = sys.gettrace()
        sys.settrace(self.frame)
        return self

    def __exit__(self, *args: Any) -> None:
        sys.settrace(self.before)

    def frame(self, frame: FrameType, event: str, arg: Any) -> Callable | None:
        code = frame.f_code
        counts = code.co_filename.startswith(self.files) and (not self.functions or code.co_name in self.functions)
        return self.line if counts else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
        self.left -= event == "line"
        if not self.left and not self.raised:
            self.raised = True
            raise KeyboardInterrupt
        return self.line


def interrupted_everywhere(
    run: Callable[[], Any], files: tuple[str, ...] = (PACKAGE, *TORCHS), functions: Collection[str] = ()
) -> Iterator[int]:
    """Run it again and again, interrupted at one line more each time, until it comes to its end.

    Args:
        run: what is run.
        files: beginnings of the names of the files whose lines count. Default: those of this package, and those of
            torch in which it handles modes.
        functions: names of those whose lines count. Default: all.
    """
    number = 0
    while True:
        number += 1
        with Interrupt(number, files, functions) as interrupt:
            try:
                run()
            except KeyboardInterrupt:
                torch.set_grad_enabled(True)  # an optimizer's step may leave it off, if it is torch that is interrupted
        if not interrupt.raised:
            assert number > 5, "it has lines"
            return
        yield number
