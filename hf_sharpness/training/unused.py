"""Sharpness arguments that were given and have no effect."""

from __future__ import annotations

import warnings
from typing import Any

from ..methods import METHODS, Options, hyperparameters
from ..methods.options import PREFIX
from ..methods.registry import arguments_of
from ..sharpness_arguments.definitions import defaults


def warn_of_unused(args: Any) -> None:
    """One warning for each argument that differs from its default and that the chosen optimizer does not have."""
    if not hasattr(args, "uses_sharpness") or args.process_index:
        return
    optim = getattr(args.optim, "value", args.optim)
    used = {"optim", "sharpness_config"}
    if optim in METHODS:
        options = {option.argument for option in hyperparameters(Options, PREFIX).values()}
        used |= {"base_optim", *options, *arguments_of(METHODS[optim])}
    for name, default in defaults(None).items():
        value = getattr(args, name)
        if name not in used and value != default:
            warnings.warn(f"{name}={value!r} has no effect with optim={optim!r}: {_remedy(name)}", stacklevel=3)


def _remedy(argument: str) -> str:
    owners = [name for name, cls in METHODS.items() if argument in arguments_of(cls)] or list(METHODS)
    return f"leave it out, or choose optim={' or '.join(map(repr, owners))}"
