"""The `hf-sharpness` command: train from a recipe, list the bundled recipes, run a script of the user's."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from hf_sharpness import __version__
from hf_sharpness.tasks.bundled import ABOUT_RECIPES
from hf_sharpness.tasks.errors import RecipeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for an error the user can put right.

    Args:
        argv: Arguments without the program's name. Default None: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="hf-sharpness",
        description="Sharpness-aware fine-tuning (SAM, WSAM, XSAM) with the Hugging Face Trainer.",
        epilog=ABOUT_RECIPES,
    )
    parser.add_argument("--version", action="version", version=f"hf-sharpness {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train", help="fine-tune as a recipe says: train RECIPE [--flag value ...]", add_help=False
    )
    train.add_argument("arguments", nargs=argparse.REMAINDER)
    run = commands.add_parser(
        "run", help="run a script written for transformers' Trainer: run SCRIPT [its arguments ...]", add_help=False
    )
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("recipes", help="list the bundled recipes", aliases=["list"])

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["run"]:
        from hf_sharpness.run import main as run_script

        return run_script(arguments[1:])
    try:
        if arguments[:1] == ["train"]:  # its flags are TrainingArguments' own, too slow to load for --version
            return _train(arguments[1:])
        parser.parse_args(arguments)
        return _list_recipes()
    except RecipeError as error:
        print(f"hf-sharpness: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _train(arguments: list[str]) -> int:
    from hf_sharpness.arguments import SHARED
    from hf_sharpness.tasks.flags import load_named, parse_training_flags, split_dotted, training_parser
    from hf_sharpness.tasks.recipe import check_values, override

    if not arguments or arguments[0] in ("-h", "--help"):
        if arguments:
            training_parser().print_help()
            return 0
        raise RecipeError("train: RECIPE is missing; `hf-sharpness recipes` lists the bundled ones")
    if arguments[0].startswith("-"):
        raise RecipeError(
            f"train: the recipe comes first, before '{arguments[0]}': hf-sharpness train RECIPE [--flag value]"
        )
    recipe = load_named(arguments[0])
    dotted, flags = split_dotted(arguments[1:])
    for name, value in dotted:
        override(recipe, name, value)
    check_values(recipe)
    given = parse_training_flags(flags)
    if "sharpness_config" in given:  # it stands in for what the recipe says of the method
        for name in SHARED:
            recipe.training.pop(name, None)
    recipe.training.update(given)

    from hf_sharpness.tasks.run import run_recipe

    # Trainer pins memory by default; on a machine without an accelerator torch would say at every epoch that it cannot.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
    run_recipe(recipe)
    return 0


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
