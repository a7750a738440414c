"""`hf-sharpness rho`: the command line.

hf-sharpness rho RECIPE [--batches 4] [--warm_up 50] [--any_training_argument VALUE]
hf-sharpness rho --script train.py [...] -- SCRIPT ARGUMENTS
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..compare.quiet import quiet_runs
from ..sharpness_arguments.definitions import shared_arguments
from ..tasks.errors import RecipeError, first_line
from ..tasks.flags import apply_flags, load_named
from ..tasks.prepare import prepare
from ..tasks.terminal import quiet
from ..tasks.threads import one_thread_for_small_models
from . import json_files, rho_picture, rho_report
from .rho_probe import WISH
from .rho_run import CannotMeasure, Wish, radii, range_test

QUIET = {
    "disable_tqdm": True,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "push_to_hub": False,
    "report_to": "none",
    "save_strategy": "no",
}
"""Arguments of the training that the test is made in."""
_LAST_LINES = 12
INTERRUPTED = 130


class RhoError(RecipeError):
    """What the user can put right."""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> Any:
        raise RhoError(f"rho: {message}; see `hf-sharpness rho --help`")


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit status: 0, 2 for an error the user can put right, 130 after Ctrl-C.

    Args:
        argv: what follows `rho`.
    """
    try:
        return _rho(list(argv))
    except (RecipeError, CannotMeasure) as error:
        print(f"hf-sharpness: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hf-sharpness rho",
        usage="hf-sharpness rho RECIPE [options] [--data.KEY VALUE] [--any_training_argument VALUE]\n"
        "       hf-sharpness rho --script SCRIPT [options] -- SCRIPT ARGUMENTS",
        description="A range test for rho, as learning-rate finders make one: how the loss and its gradient change "
        "with the length of the perturbation, on real batches, before and after a short plain warm-up.",
        epilog="docs/rho.md says what is measured and what the ranges are worth.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--script", metavar="SCRIPT", help="measure in a script written for transformers' Trainer instead of a recipe")
    add("--batches", type=int, default=4, help="batches for each of SAM and ASAM, before and after (%(default)s)")
    add("--warm_up", type=int, help="plain steps between. Default: a tenth of the training, from 10 to 200")
    add("--lowest", type=float, default=1e-4, help="the smallest rho (%(default)s)")
    add("--highest", type=float, default=10.0, help="the largest rho (%(default)s)")
    add("--points", type=int, default=21, help="how many radii, at equal ratios (%(default)s)")
    add("--output_dir", metavar="FOLDER", help="where rho.json and rho.png go. Default: ranges/NAME")
    return parser


def _rho(arguments: list[str]) -> int:
    own, script_arguments = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, script_arguments = arguments[:cut], arguments[cut + 1 :]
    parser = _parser()
    if {"-h", "--help"} & set(own):
        parser.print_help()
        return 0
    recipe = own.pop(0) if own and not own[0].startswith("-") else None
    given, rest = parser.parse_known_args(own)
    wish = _wish(given)
    quiet()
    if given.script is not None:
        if recipe is not None or rest:
            raise RhoError(f"rho: {recipe or rest[0]}: with --script, the script's own arguments come after --")
        name, record = Path(given.script).stem, _of_script(given.script, script_arguments, wish)
    elif recipe is None:
        raise RhoError("rho: RECIPE (the first argument) or --script SCRIPT is missing")
    elif script_arguments:
        raise RhoError("rho: arguments after -- are a script's: name it with --script")
    else:
        name, record = _of_recipe(recipe, rest, wish)
    folder = Path(given.output_dir or Path("ranges") / name)
    record = rho_report.judged({"name": name, **record})
    json_files.write(record, folder / "rho.json")
    print(rho_report.text(record))
    picture = rho_picture.draw(record, folder / "rho.png")
    print(f"\nwritten to {folder / 'rho.json'} and {picture}")
    return 0


def _wish(given: argparse.Namespace) -> Wish:
    for name, least in (("batches", 1), ("points", 3), ("warm_up", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise RhoError(f"rho: --{name} {value}: must be at least {least}")
    if not 0 < given.lowest < given.highest < float("inf"):
        raise RhoError(f"rho: --lowest {given.lowest:g} --highest {given.highest:g}: must be 0 < lowest < highest")
    return Wish(radii(given.lowest, given.highest, given.points), given.batches, given.warm_up)


def _of_recipe(named: str, flags: Sequence[str], wish: Wish) -> tuple[str, dict[str, Any]]:
    """The record of a recipe, whose training begins in this process and is not saved."""
    recipe = load_named(named)
    apply_flags(recipe, flags, "rho")
    # Its method does not matter, only what it wraps, and the options of the steps.
    kept = ("base_optim", "optim", *(name for name in recipe.training if name not in shared_arguments()))
    training = {name: value for name, value in recipe.training.items() if name in kept}
    with tempfile.TemporaryDirectory(prefix="hf-sharpness-") as folder:
        recipe = dataclasses.replace(recipe, training={**training, **QUIET, "output_dir": str(Path(folder, "run"))})
        run = prepare(recipe)
        with one_thread_for_small_models(run.task.model, run.arguments.device), quiet_runs():
            return recipe.name, range_test(run.trainer, wish)


def _of_script(script: str, arguments: Sequence[str], wish: Wish) -> dict[str, Any]:
    """The record of a script, run in a process of its own up to its first training.

    Raises:
        RhoError: no such script, or it ended before it trained.
    """
    if not Path(script).is_file():
        raise RhoError(f"rho: --script {script}: no such file")
    with tempfile.TemporaryDirectory(prefix="hf-sharpness-") as folder:
        path = Path(folder, "record.json")
        command = [sys.executable, "-m", "hf_sharpness.run"]
        for name, value in {**QUIET, "output_dir": str(Path(folder, "output"))}.items():
            command += ["--set", f"{name}={value}"]
        command += ["-m", "hf_sharpness.measure.rho_probe", script, *arguments]
        asked = {**dataclasses.asdict(wish), "path": str(path)}
        environment = {**os.environ, WISH: json.dumps(asked)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if record is None:
        tail = " | ".join((result.stderr or result.stdout).strip().splitlines()[-_LAST_LINES:])
        said = first_line(ValueError(tail)) if tail else "it ended without training"
        raise RhoError(f"rho: --script {script}: no Trainer trained in it (status {result.returncode}): {said}")
    if "error" in record:
        raise RhoError(f"rho: --script {script}: {record['error']}")
    return record
