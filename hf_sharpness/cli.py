"""The `hf-sharpness` command: train from a recipe, compare methods on it, measure a model, run a script."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence

from hf_sharpness import __version__
from hf_sharpness.tasks.bundled import ABOUT_RECIPES
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.extra import require_recipes_extra


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for an error the user can put right.

    Args:
        argv: Arguments without the program's name. Default None: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="hf-sharpness",
        description="Sharpness-aware fine-tuning with the Hugging Face Trainer.",
        epilog=ABOUT_RECIPES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train", help="fine-tune as a recipe says: train RECIPE [--flag value ...]", add_help=False
    )
    train.add_argument("arguments", nargs=argparse.REMAINDER)
    run = commands.add_parser(
        "run", help="run a script written for transformers' Trainer: run SCRIPT [its arguments ...]", add_help=False
    )
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    compare = commands.add_parser(
        "compare", help="does it help on my task? compare RECIPE [--arms base,METHOD,...] [...]", add_help=False
    )
    compare.add_argument("arguments", nargs=argparse.REMAINDER)
    rho = commands.add_parser("rho", help="which rho? a range test: rho RECIPE [--batches 4] [...]", add_help=False)
    rho.add_argument("arguments", nargs=argparse.REMAINDER)
    measure = commands.add_parser(
        "measure", help="how sharp is a model's loss? measure MODEL [--data RECIPE] [...]", add_help=False
    )
    measure.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("recipes", help="list the bundled recipes", aliases=["list"])

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:
        from hf_sharpness.run import main as run_script

        return run_script(arguments[1:])
    if arguments[:1] == ["compare"]:
        try:
            from hf_sharpness.compare.cli import main as compare_arms
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("hf_sharpness"):
                raise
            print(
                f"hf-sharpness: error: compare needs {error.name}; install it with `pip install hf_sharpness[compare]`",
                file=sys.stderr,
            )
            return 2
        return compare_arms(arguments[1:])
    try:
        if arguments[:1] == ["train"]:  # its flags are TrainingArguments' own, too slow to load for --version
            require_recipes_extra("train")
            from hf_sharpness.tasks.command import main as train_recipe

            return train_recipe(arguments[1:])
        if arguments[:1] == ["measure"]:
            require_recipes_extra("measure")
            from hf_sharpness.measure.cli import main as measure_model

            return measure_model(arguments[1:])
        if arguments[:1] == ["rho"]:
            require_recipes_extra("rho")
            from hf_sharpness.measure.rho_cli import main as test_range

            return test_range(arguments[1:])
        parser.parse_args(arguments)
        return _list_recipes()
    except RecipeError as error:
        print(f"hf-sharpness: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `hf-sharpness train --help-all | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        return 1


def _versions() -> str:
    others = []
    for package in ("torch", "transformers", "accelerate"):
        try:
            others.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            others.append(f"no {package}")
    return f"hf-sharpness {__version__} ({', '.join(others)}, Python {platform.python_version()})"


def _list_recipes() -> int:
    from hf_sharpness.tasks.bundled import bundled_recipes
    from hf_sharpness.tasks.yaml12 import parse_yaml

    recipes = bundled_recipes()
    width = max((len(name) for name in recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {parse_yaml(path.read_text(encoding='utf-8'))['description']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
