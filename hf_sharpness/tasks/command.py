"""`hf-sharpness train RECIPE [flags]`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from . import run
from .errors import RecipeError
from .flags import apply_flags, load_named, training_parser
from .sections import DataSection, ModelSection, PeftSection, described_keys
from .terminal import quiet


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: What follows `train`.

    Raises:
        RecipeError: Anything the user can put right.
    """
    if not arguments:
        raise RecipeError("train: RECIPE is missing; `hf-sharpness recipes` lists the bundled ones")
    if {"-h", "--help", "--help-all"} & set(arguments):
        print(_help(everything="--help-all" in arguments))
        return 0
    name, *flags = arguments
    if name.startswith("-"):
        raise RecipeError(f"train: the recipe comes first, before '{name}': hf-sharpness train RECIPE [--flag value]")
    recipe = load_named(name)
    overwrite = apply_flags(recipe, flags)
    quiet()
    if not sys.stderr.isatty():
        recipe.training.setdefault("disable_tqdm", True)
    run.run_recipe(recipe, overwrite=overwrite, one_thread_if_small=True)
    return 0


def _help(everything: bool) -> str:
    text = training_parser(everything).format_help()
    if not everything:
        return f"{text}\n`hf-sharpness train --help-all` lists every training argument and every key of a recipe."
    parts = [text]
    for name, section in (("model", ModelSection), ("data", DataSection), ("peft", PeftSection)):
        parts.append(f"keys of the section {name}, also as flags --{name}.KEY VALUE:")
        for key, kind, default, meaning in described_keys(section):
            about = f"{' '.join(meaning.split())} ({kind}; default {default})"
            parts.append(f"  {key}\n{textwrap.fill(about, 100, initial_indent=' ' * 8, subsequent_indent=' ' * 8)}")
    return "\n".join(parts)
