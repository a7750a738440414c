"""Recipes and training arguments from a command line: `RECIPE --data.KEY VALUE --any_training_argument VALUE`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bundled import ABOUT_RECIPES, find_recipe
from .errors import RecipeError, nearest
from .recipe import Recipe, load_recipe
from .shared import load_shared_recipe


def load_named(name: str) -> Recipe:
    """The recipe of that name: a file, a bundled one, or one in a repo on the Hub.

    Raises:
        RecipeError: There is none, or it is not valid.
    """
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
    parser = training_parser()
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


def training_parser() -> Any:
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
        epilog=ABOUT_RECIPES + " Keys of the model and data sections are described in hf_sharpness/tasks/recipe.py.",
        allow_abbrev=False,
    )
