"""`hf-sharpness measure`: the command line.

hf-sharpness measure MODEL [--data RECIPE] [--rho .01,.05] [--hessian] [--pictures all] [--data.KEY VALUE]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..tasks.errors import RecipeError
from ..tasks.flags import split_dotted
from ..tasks.terminal import quiet
from ..tasks.threads import one_thread_for_small_models
from . import json_files, report
from .cheap import ADAPTIVE_RHO, RHO, WORST_RHO, Settings, measures, relative
from .errors import MeasureError
from .on_request import PICTURES, hessian, pictures
from .pictures import draw
from .subject import SPLITS, Subject, load_like, load_subject, other_batches
from .surface import Surface

INTERRUPTED = 130
_LEAST = {"batch_size": 1, "worst_steps": 0, "seed": 0, "hessian": 0, "probes": 1, "resolution": 2}
EXAMPLES = 512


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 2 for an error the user can put right, 130 after Ctrl-C.

    Args:
        argv: Arguments after `measure`. Default None: those of the process.
    """
    try:
        return _measure(list(sys.argv[1:] if argv is None else argv))
    except (RecipeError, MeasureError) as error:
        print(f"hf-sharpness: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> Any:
        raise RecipeError(f"measure: {message}; see `hf-sharpness measure --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hf-sharpness measure",
        usage="hf-sharpness measure MODEL [--data RECIPE] [options] [--data.KEY VALUE]",
        description="How sharp is the loss of a model? Loss and error, SAM's and ASAM's sharpness, the worst loss near "
        "the weights, critical sharpness, and the generalisation gap, on a fixed sample of a recipe's data.",
        epilog="MODEL is a folder that save_pretrained or `hf-sharpness train` wrote, a PEFT adapter's, or a Hub id. "
        "docs/measure.md says what each number is.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="what to measure")
    add("--data", metavar="RECIPE", help="the recipe whose data to measure on. Default: the recipe.yaml beside MODEL")
    add("--other_data", metavar="RECIPE", help="a second data set, for relative critical sharpness")
    add("--examples", type=_count, default=EXAMPLES, help="most examples of each split, or all (%(default)s)")
    add("--batch_size", type=int, help="examples in a batch. Default: the recipe's for evaluation, or 32")
    add("--rho", type=_numbers, default=RHO, help=f"SAM's lengths ({_text(RHO)}); none: 'none'")
    add("--adaptive_rho", type=_numbers, default=ADAPTIVE_RHO, help=f"ASAM's lengths ({_text(ADAPTIVE_RHO)})")
    add("--worst_rho", type=_numbers, default=WORST_RHO, help=f"radii for the worst loss ({_text(WORST_RHO)})")
    add("--worst_steps", type=int, default=10, help="ascents of that search after the first (%(default)s)")
    add(
        "--hessian",
        nargs="?",
        const=3,
        default=0,
        type=int,
        metavar="K",
        help="K largest eigenvalues (3) and the trace",
    )
    add("--probes", type=int, default=10, help="random vectors for the trace (%(default)s)")
    add("--pictures", type=_pictures, default=(), help=f"some of {','.join(PICTURES)}, or all")
    add("--picture_rho", type=float, default=0.05, help="rho of the pictures sam and cosine (%(default)s)")
    add("--resolution", type=int, default=21, help="points along an axis of a picture (%(default)s)")
    add("--to", metavar="MODEL", help="draw the loss on the straight line to another model too")
    add("--dtype", choices=("float32", "float64"), default="float32", help="type computed in (%(default)s)")
    add("--device", help="cpu, cuda:1, ... Default: the first CUDA device, or the CPU")
    add("--seed", type=int, default=0, help="draws the examples (%(default)s)")
    add("--output_dir", metavar="FOLDER", help="where measure.json goes. Default: measurements/NAME")
    return parser


def _measure(arguments: list[str]) -> int:
    parser = _parser()
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    changes, rest = split_dotted(arguments)
    given = parser.parse_args(rest)
    for name, least in _LEAST.items():
        value = getattr(given, name)
        if value is not None and value < least:
            raise RecipeError(f"--{name} {value}: must be at least {least}")
    if not (math.isfinite(given.picture_rho) and given.picture_rho > 0):
        raise RecipeError(f"--picture_rho {given.picture_rho}: must be positive")
    settings = Settings(given.rho, given.adaptive_rho, given.worst_rho, given.worst_steps)
    folder = Path(given.output_dir or Path("measurements") / (Path(given.model).resolve().name or "model"))
    path = folder / "measure.json"
    quiet()
    subject = load_subject(
        given.model, given.data, changes, getattr(torch, given.dtype), given.device, given.batch_size
    )
    results: dict[str, Any] = {"about": _about(given, subject)}
    status = 0
    with one_thread_for_small_models(subject.model, next(subject.model.parameters()).device):
        try:
            for name, value in _all_measures(given, subject, settings):
                section, _, picture = name.partition("/")
                if picture:
                    results.setdefault(section, {})[picture] = value
                    draw(picture, value, f"{given.model} on {subject.recipe.data.source}", folder / f"{picture}.png")
                else:
                    results[name] = value
                json_files.write(results, path)
        except KeyboardInterrupt:
            results["interrupted"] = True
            status = INTERRUPTED
    json_files.write(results, path)
    drawn = ", ".join(f"{name}.png" for name in results.get("pictures", {}))
    print(report.table(results))
    print(
        f"\n{'stopped; what was measured is' if status else 'written to'} {'in ' if status else ''}{path}"
        + (f"; {drawn}" if drawn else "")
    )
    return status


def _all_measures(given: argparse.Namespace, subject: Subject, settings: Settings) -> Iterator[tuple[str, Any]]:
    batches = subject.batches("train", given.examples, given.seed)
    splits = {split: subject.batches(split, given.examples, given.seed) for split in SPLITS}
    other = None
    if given.other_data is not None:
        other = other_batches(subject, given.other_data, given.examples, given.seed)
    goal = None if given.to is None else load_like(subject, given.to)
    with _progress(settings.passes() * len(batches) + sum(map(len, splits.values()))) as (tick, say):
        with Surface(subject.model, batches, tick=tick) as surface:
            say("loss")
            found = {split: surface.evaluate(batches=of_split) for split, of_split in splits.items()}
            yield "loss", {split: vars(entry) for split, entry in found.items()}
            train, test = found["train"], found["test"]
            classified = train.error is not None and test.error is not None
            yield (
                "generalization_gap",
                {
                    "loss": test.loss - train.loss,
                    "error": test.error - train.error if classified else None,  # type: ignore[operator]
                },
            )
            say("sharpness")
            yield from measures(surface, settings)
            if other is not None:
                say("the other data")
                yield "relative_critical_sharpness", {"other_data": other[0], **relative(surface, other[1])}
            if given.hessian:
                say("Hessian")
                yield "hessian", hessian(surface, given.hessian, given.probes, given.seed)
            say("pictures")
            on_the_way = {split: splits[split] for split in ("train", "test")}
            towards = None if goal is None else (given.to, surface.towards(goal))
            drawn = pictures(
                surface, given.pictures, given.picture_rho, given.resolution, given.seed, towards, on_the_way
            )
            for picture, numbers in drawn:
                yield f"pictures/{picture}", numbers


def _about(given: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    parameters = list(subject.model.parameters())
    return {
        "model": given.model,
        "data": subject.recipe.data.source,
        "recipe": subject.recipe.origin,
        "examples": len(subject.batches("train", given.examples, given.seed).dataset)
        if given.examples is None
        else min(given.examples, len(subject.task.train_dataset)),
        "seed": given.seed,
        "dtype": given.dtype,
        "mode": "eval",
        "parameters": sum(p.numel() for p in parameters),
        "perturbed_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar over batches, where somebody looks on."""
    from tqdm import tqdm

    bar = tqdm(total=total, unit="batch", leave=False, disable=None, file=sys.stderr)

    def tick() -> None:
        if bar.total is not None and bar.n >= bar.total:
            bar.total = bar.n + 1
        bar.update()

    try:
        yield tick, bar.set_description
    finally:
        bar.close()


def _count(text: str) -> int | None:
    if text == "all":
        return None
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1, or all")
    return number


def _pictures(text: str) -> tuple[str, ...]:
    names = PICTURES if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in PICTURES:
            raise argparse.ArgumentTypeError(f"{text}: must be all, or some of {','.join(PICTURES)}")
    return names


def _numbers(text: str) -> tuple[float, ...]:
    """Positive numbers with commas between them, or `none`."""
    if text == "none":
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write numbers with commas between them, as in .01,.05") from None
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: must be positive")
    return values


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
