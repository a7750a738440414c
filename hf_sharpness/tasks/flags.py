"""Recipes and training arguments from a command line: `RECIPE --data.KEY VALUE --any_training_argument VALUE`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..arguments import SharpnessArguments, TrainingArguments
from ..sharpness_arguments.definitions import shared_arguments
from .bundled import ABOUT_RECIPES, find_recipe
from .errors import RecipeError, nearest
from .recipe import Recipe, load_recipe, override
from .shared import load_shared_recipe


def load_named(name: str) -> Recipe:
    """The recipe of that name: a file, a folder with one, a bundled one, or one in a repo on the Hub.

    Raises:
        RecipeError: There is none, or it is not valid.
    """
    if name.endswith(".py"):
        raise RecipeError(
            f"'{name}' is a script and no recipe: `hf-sharpness run {name}` runs it, and compare and rho take it as "
            f"--script {name}"
        )
    looks_like_a_repo = name.count("/") == 1 and not name.endswith((".yaml", ".yml")) and name[0] not in "./~"
    if looks_like_a_repo and not Path(name).exists():
        return load_shared_recipe(name)
    return load_recipe(find_recipe(name))


def apply_flags(recipe: Recipe, arguments: Sequence[str], command: str = "train") -> bool:
    """Change a recipe as the command line says, in place.

    Args:
        recipe: The recipe.
        command: Whose command line, for errors. Default: that of `train`.
        arguments: `--data.KEY VALUE`, `--model.KEY VALUE`, `--peft.KEY VALUE`, flags of TrainingArguments, and
            --overwrite_output_dir.

    Returns:
        Whether the run that the output folder holds is to be replaced.

    Raises:
        RecipeError: An unknown flag, or a value of the wrong type.
    """
    dotted, flags = split_dotted(arguments)
    for name, value in dotted:
        override(recipe, name, value)
    given = parse_training_flags(flags, command)
    overwrite = given.pop(_OVERWRITE, False)
    recipe.training_of_file = dict(recipe.training)
    if "sharpness_config" in given:  # it stands in for what the recipe says of the method
        for name in shared_arguments():
            recipe.training.pop(name, None)
    recipe.training.update(given)
    return overwrite


def split_dotted(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Separate `--model.KEY VALUE` and the like (or `=VALUE`) from the flags of TrainingArguments.

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
        if not argument.startswith(("--model.", "--data.", "--peft.")):
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


def parse_training_flags(arguments: Sequence[str], command: str = "train") -> dict[str, Any]:
    """Parse flags of `hf_sharpness.TrainingArguments`; return only those that were given.

    Raises:
        RecipeError: Unknown flag, or a value of the wrong type.
    """
    parser = training_parser(command=command)
    not_given = object()
    # argparse leaves an attribute that is already there alone unless its flag occurs.
    fields = {action.dest: not_given for action in parser.flags}
    namespace, unknown = parser.parse_known_args(list(arguments), argparse.Namespace(**fields))
    if unknown:
        flags = [option for action in parser.flags for option in action.option_strings]
        flag = unknown[0].partition("=")[0]
        if flag.startswith("-"):
            meant = nearest(flag, flags)
            raise RecipeError(f"{command}: unknown flag '{flag}'{meant}; see `hf-sharpness {command} --help`")
        raise RecipeError(f"{command}: unexpected argument '{unknown[0]}'; flags are written --name value")
    return {name: value for name, value in vars(namespace).items() if value is not not_given}


def training_parser(everything: bool = True, command: str = "train") -> Any:
    """The parser of the flags of TrainingArguments; unlike argparse's own it raises RecipeError.

    Args:
        everything: Whether its help lists all of them. Default True; else the sharpness arguments and a few others.
        command: Whose flags, for errors. Default: those of `train`.
    """
    parser = _TrainingParser(
        TrainingArguments,
        everything=everything,
        command=command,
        prog="hf-sharpness train",
        usage="hf-sharpness train RECIPE [--data.KEY VALUE] [--model.KEY VALUE] [--any_training_argument VALUE]",
        description="Fine-tune as RECIPE says; flags replace its entries.",
        epilog=ABOUT_RECIPES,
        allow_abbrev=False,
    )
    parser.add_argument(
        f"--{_OVERWRITE}",
        f"--{_OVERWRITE.replace('_', '-')}",
        type=string_to_bool,
        nargs="?",
        const=True,
        help="Replace the run that the output folder holds. Without this flag that is an error.",
    )
    return parser


_OVERWRITE = "overwrite_output_dir"
_OFTEN = """output_dir overwrite_output_dir seed learning_rate num_train_epochs max_steps per_device_train_batch_size
    gradient_accumulation_steps lr_scheduler_type warmup_steps weight_decay bf16 use_cpu resume_from_checkpoint
    push_to_hub report_to""".split()  # noqa: SIM905
_SHARPNESS = [field.name for field in dataclasses.fields(SharpnessArguments)]


class _TrainingParser(HfArgumentParser):
    """HfArgumentParser whose help begins with the sharpness arguments, and whose errors are one line."""

    def __init__(self, *args: Any, everything: bool, command: str, **kwargs: Any) -> None:
        self.flags: list[argparse.Action] = []
        self._everything, self._command = everything, command
        self._groups: dict[str, Any] | None = None
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        if args[0] == "-h":
            return super().add_argument(*args, **kwargs)
        if self._groups is None:
            names = ("sharpness-aware training", "often used", "all other training arguments")
            self._groups = {name: self.add_argument_group(name) for name in names}
        sharpness, often, others = self._groups.values()
        name = args[0].lstrip("-")
        group = sharpness if name in _SHARPNESS else often if name in _OFTEN else others
        if group is others and not self._everything:
            kwargs["help"] = argparse.SUPPRESS
        if name in ("optim", "base_optim"):
            kwargs["choices"] = None  # TrainingArguments says what a name that is not known may stand for
            kwargs["metavar"] = "NAME"
        if len(kwargs.get("choices") or ()) > 8:
            kwargs["metavar"] = "NAME"  # its error lists them
        action = group.add_argument(args[0], **kwargs)
        for alias in args[1:]:  # with dashes: works, and is not listed
            group.add_argument(alias, **{**kwargs, "dest": action.dest, "help": argparse.SUPPRESS})
        self.flags.append(action)
        return action

    def error(self, message: str) -> Any:
        raise RecipeError(f"{self._command}: {message}")
