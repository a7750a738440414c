"""The `hf-sharpness` command: train from a recipe, list the bundled recipes, run a script of the user's."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sharpness import __version__
from hf_sharpness.tasks.errors import RecipeError, nearest

_EPILOG = """RECIPE is a YAML file, the name of a bundled recipe (see `hf-sharpness recipes`), or a repo on
the Hub with a recipe.yaml in it (`user/repo`, `user/repo@revision`)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 2 for an error the user can put right.

    Args:
        argv: Arguments without the program's name. Default None: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="hf-sharpness",
        description="Sharpness-aware fine-tuning (SAM, WSAM, XSAM) with the Hugging Face Trainer.",
        epilog=_EPILOG,
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
    from hf_sharpness.hub import ARGUMENTS
    from hf_sharpness.tasks.recipe import check_values, override

    if not arguments or arguments[0] in ("-h", "--help"):
        if arguments:
            _training_parser().print_help()
            return 0
        raise RecipeError("train: RECIPE is missing; `hf-sharpness recipes` lists the bundled ones")
    if arguments[0].startswith("-"):
        raise RecipeError(
            f"train: the recipe comes first, before '{arguments[0]}': hf-sharpness train RECIPE [--flag value]"
        )
    recipe = _load(arguments[0])
    dotted, flags = split_dotted(arguments[1:])
    for name, value in dotted:
        override(recipe, name, value)
    check_values(recipe)
    given = parse_training_flags(flags)
    if "sharpness_config" in given:  # it stands in for what the recipe says of the method
        for name in ARGUMENTS:
            recipe.training.pop(name, None)
    recipe.training.update(given)

    from hf_sharpness.tasks.run import run_recipe

    # Trainer pins memory by default; on a machine without an accelerator torch would say at every epoch that it cannot.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true")
    run_recipe(recipe)
    return 0


def _load(name: str) -> Any:
    """The recipe of that name: a file, a bundled one, or one in a repo on the Hub."""
    from hf_sharpness.tasks.recipe import find_recipe, load_recipe
    from hf_sharpness.tasks.shared import load_shared_recipe

    looks_like_a_repo = name.count("/") == 1 and not name.endswith((".yaml", ".yml")) and name[0] not in "./~"
    if looks_like_a_repo and not Path(name).exists():
        return load_shared_recipe(name)
    return load_recipe(find_recipe(name))


def split_dotted(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Separate `--model.KEY VALUE` and `--data.KEY VALUE` (or `=VALUE`) from the flags of TrainingArguments.

    Returns:
        The dotted names with their values as text, and the remaining arguments.

    Raises:
        RecipeError: A dotted flag has no value.
    """
    dotted: list[tuple[str, str]] = []
    rest: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith(("--model.", "--data.")):
            rest.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals:
            if position == len(arguments) or arguments[position].startswith("--"):
                raise RecipeError(f"--{name}: a value is missing")
            value = arguments[position]
            position += 1
        dotted.append((name, value))
    return dotted, rest


def parse_training_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse flags of `hf_sharpness.TrainingArguments`; return only those that were given.

    Raises:
        RecipeError: Unknown flag, or a value of the wrong type.
    """
    parser = _training_parser()
    not_given = object()
    # argparse leaves an attribute that is already there alone unless its flag occurs.
    fields = {action.dest: not_given for action in parser.flags}
    namespace, unknown = parser.parse_known_args(list(arguments), argparse.Namespace(**fields))
    if unknown:
        flags = [option for action in parser.flags for option in action.option_strings]
        flag = unknown[0].partition("=")[0]
        if flag.startswith("-"):
            raise RecipeError(f"train: unknown flag '{flag}'{nearest(flag, flags)}; see `hf-sharpness train --help`")
        raise RecipeError(f"train: unexpected argument '{unknown[0]}'; flags are written --name value")
    return {name: value for name, value in vars(namespace).items() if value is not not_given}


def _training_parser() -> Any:
    from transformers import HfArgumentParser

    from hf_sharpness import TrainingArguments

    class TrainingParser(HfArgumentParser):
        """HfArgumentParser whose errors are one line: argparse would print every flag before them."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.flags: list[argparse.Action] = []
            super().__init__(*args, **kwargs)

        def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
            action = super().add_argument(*args, **kwargs)
            if action.dest != "help":
                self.flags.append(action)
            return action

        def error(self, message: str) -> Any:
            raise RecipeError(f"train: {message}")

    return TrainingParser(
        TrainingArguments,
        prog="hf-sharpness train",
        usage="hf-sharpness train RECIPE [--data.KEY VALUE] [--model.KEY VALUE] [--any_training_argument VALUE]",
        description="Fine-tune as RECIPE says; flags replace its entries.",
        epilog=_EPILOG + " Keys of the model and data sections are described in hf_sharpness/tasks/recipe.py.",
        allow_abbrev=False,
    )


def _list_recipes() -> int:
    from hf_sharpness.tasks.recipe import bundled_recipes, load_recipe

    recipes = bundled_recipes()
    width = max((len(name) for name in recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {load_recipe(path).description}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
