"""The program that a script's range test is started with: its first training is the test, and the script ends there.

    python -m hf_sharpness.run -m hf_sharpness.measure.rho_probe SCRIPT ARGUMENTS

What to measure, and the file to write the record to, come in HF_SHARPNESS_RHO (JSON).
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import transformers

from .rho_run import CannotMeasure, Wish, range_test

WISH = "HF_SHARPNESS_RHO"


def install(trainer_class: Any, path: Path, wish: Wish) -> None:
    """Have the first call of `train` be the test, which ends the process's program."""
    train = trainer_class.train

    @functools.wraps(train)
    def tested(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainer_class.train = train
        try:
            record = range_test(trainer, wish)
        except CannotMeasure as error:
            record = {"error": str(error)}
        if trainer.is_world_process_zero():
            path.write_text(json.dumps(record), encoding="utf-8")
        raise SystemExit(0)

    trainer_class.train = tested


def main() -> None:
    """Run the script of the command line up to its first training."""
    asked = json.loads(os.environ.pop(WISH))
    path = Path(asked.pop("path"))
    wish = Wish(**{**asked, "radii": tuple(asked["radii"])})
    install(transformers.Trainer, path, wish)
    script, *arguments = sys.argv[1:]
    sys.argv[:] = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
