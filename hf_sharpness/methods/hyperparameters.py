"""Hyper-parameters, defined once as fields of a method: how they are named as arguments, bound to it and checked."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union


def hyperparameter(
    default: Any,
    *,
    help: str,
    require: str,
    valid: Callable[[Any], bool],
    choices: tuple[str, ...] | None = None,
    most: int | None = None,
) -> Any:
    """A dataclass field that defines a hyper-parameter once: default, help, and what a valid value is.

    Its type is a bool, int, float or str, or several of them; with a default of None also None.

    Args:
        default: the default value. None stands for "not given" among the arguments, and is valid only as a default.
        help: one or two sentences for ``--help`` and the documentation.
        require: how an error names the valid values, as in "must be a number >= 0".
        valid: says whether a value is one of them.
        choices: the valid values, where they are a few words. Default None: any.
        most: the highest value that a file shared by somebody else may set, where each unit costs a pass or the like.
            Default None: any that is valid.
    """
    definition = {"help": help, "require": require, "valid": valid, "choices": choices, "most": most}
    return dataclasses.field(default=default, metadata={_KEY: definition})


_KEY = "hyperparameter"


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number (a bool is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """A hyper-parameter as a method has it.

    Attributes:
        name: the field's name in the method, such as ``rho``.
        argument: the name among the training arguments, such as ``sam_rho``: that of the most basic method with the
            hyper-parameter comes first, so that methods which derive from it share the argument.
        type: its type.
        default: the method's own default.
        help: for ``--help``.
        require: how an error names the valid values.
        valid: says whether a value is one of them.
        choices: the valid values, where they are a few words.
        most: the highest value that a file shared by somebody else may set.
    """

    name: str
    argument: str
    type: Any
    default: Any
    help: str
    require: str
    valid: Callable[[Any], bool]
    choices: tuple[str, ...] | None
    most: int | None

    @property
    def kinds(self) -> tuple[type, ...]:
        """The types that a value may have, without None."""
        union = typing.get_origin(self.type) in (Union, types.UnionType)
        members = typing.get_args(self.type) if union else (self.type,)
        return tuple(member for member in members if member is not type(None))

    def accepts(self, value: Any) -> bool:
        """Whether a value is valid: of a type that the hyper-parameter has, finite, and one that its author allows."""
        if value is not None and not any(_is(value, kind) for kind in self.kinds):
            return False
        try:
            return bool(self.valid(value))
        except (TypeError, ValueError):  # `value >= 0` of None
            return False

    def check(self, value: Any, named: str | None = None) -> None:
        """Raise a ValueError for a value that is not valid.

        Args:
            value: the value.
            named: how the caller calls the hyper-parameter. Default None: by its name.
        """
        if not self.accepts(value):
            raise ValueError(f"{named or self.name}={value!r} is not valid: {self.require}")


def _is(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return is_number(value) if kind is float else isinstance(value, kind)


def hyperparameters(cls: type, prefix: str | None = None) -> dict[str, Hyperparameter]:
    """The hyper-parameters of a dataclass by their names in it, in the order of its fields.

    Args:
        cls: a method, or the options that all methods have.
        prefix: what the arguments' names begin with. Default None: the name of the method that introduces each.
    """
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        definition = _definition(cls, field.name)
        if definition:
            argument = f"{_introduced_by(cls, field.name) if prefix is None else prefix}_{field.name}"
            found[field.name] = Hyperparameter(field.name, argument, hints[field.name], field.default, **definition)
    return found


def _definition(cls: type, name: str) -> Mapping[str, Any]:
    """What ``hyperparameter`` said last: a class may give one that it inherits another default and no more."""
    fields = (getattr(base, "__dataclass_fields__", {}).get(name) for base in cls.__mro__)
    return next((field.metadata[_KEY] for field in fields if field is not None and _KEY in field.metadata), {})


def _introduced_by(cls: Any, name: str) -> str:
    """The name of the most basic method, among those that a method derives from, that has the hyper-parameter."""
    bases = (base for base in reversed(cls.__mro__) if name in getattr(base, "__dataclass_fields__", {}))
    return next((vars(base)["name"] for base in bases if "name" in vars(base)), cls.name)


def check_hyperparameters(instance: Any) -> None:
    """Raise a ValueError that names the first hyper-parameter of a method, or of the options, that is not valid."""
    for name, hyperparameter in hyperparameters(type(instance), "").items():
        hyperparameter.check(getattr(instance, name))
