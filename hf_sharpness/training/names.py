"""How a method's hyper-parameters are called among the training arguments."""

from __future__ import annotations

from ..methods import METHODS
from ..methods.registry import arguments_of


def argument_of(name: str, field: str) -> str:
    """The argument of a field of the method of that name."""
    return next(argument for argument, own in arguments_of(METHODS[name]).items() if own.name == field)
