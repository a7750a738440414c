"""Run a script written for transformers' Trainer with sharpness-aware steps, as it is.

    hf-sharpness run script.py ARGS...              python -m hf_sharpness.run script.py ARGS...
    hf-sharpness run -m package.module ARGS...      accelerate launch -m hf_sharpness.run script.py ARGS...

Trainer, Seq2SeqTrainer, TrainingArguments and Seq2SeqTrainingArguments are this package's for the script and all that
it imports, so its arguments take `--optim wsam` and every sharpness flag. All else is as `python script.py ARGS...`
would have it, and with one of transformers' own optimizers so is the result.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .classes import install
from .program import run_module, run_path, without_own_frames


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the arguments name; what it raises goes through, with a traceback that begins in it.

    Args:
        argv: ``SCRIPT ARGS...`` or ``-m MODULE ARGS...``. Default None: the arguments of the process.

    Returns:
        The exit status: 0, or 2 for a program that cannot be started.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments == ["-m"]:
        return _error("-m: the name of a module is missing")
    if arguments[0].startswith("-") and arguments[0] != "-m":
        return _error(f"unknown option {arguments[0]!r}: the script comes first, its arguments after it")
    if arguments[0] != "-m" and not os.path.exists(arguments[0]):
        return _error(f"can't open file {arguments[0]!r}: no such file")
    install()
    try:
        if arguments[0] == "-m":
            run_module(arguments[1], arguments[2:])
        else:
            run_path(arguments[0], arguments[1:])
    except BaseException:
        sys.excepthook = without_own_frames(sys.excepthook)
        raise
    return 0


def _error(message: str) -> int:
    print(f"hf-sharpness run: error: {message}", file=sys.stderr)
    return 2
