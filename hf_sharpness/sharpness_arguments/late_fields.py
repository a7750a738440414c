"""Gives a dataclass, and all that derive from it, other fields than it was defined with (a method registered late)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_GENERATED = (
    *("__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__match_args__"),
    "__doc__",
)
"""What ``dataclass`` writes from the fields, each only where the class has none of its own."""


def set_fields(base: type, fields: Mapping[str, tuple[Any, dataclasses.Field]]) -> None:
    """Make these the fields of a dataclass's own, as if it and its subclasses had been defined so.

    ``dataclass`` has built the fields into functions of each class, and is therefore applied again to the class and to
    its subclasses that are dataclasses. Everything written by hand stays: functions, class attributes, flags.

    Args:
        base: the dataclass.
        fields: type and ``dataclasses.field(...)`` by name.
    """
    classes = [base, *_dataclasses_below(base)]
    own = {cls: _own_fields(cls) for cls in classes}
    handwritten = {cls: _handwritten(cls, own[cls]) for cls in classes}
    for name, field in own[base].items():
        if name in vars(base) and (name not in fields or fields[name][1] is not field):
            delattr(base, name)  # the default of the field that goes
    base.__annotations__ = {name: hint for name, (hint, _) in fields.items()}
    own[base] = {name: field for name, (_, field) in fields.items()}
    for cls in classes:
        _apply_dataclass(cls, own[cls])
        for name, value in handwritten[cls].items():
            setattr(cls, name, value)


def _dataclasses_below(base: type) -> list[type]:
    """All subclasses that are dataclasses by their own decorator, each after those that it derives from."""
    found: dict[type, None] = {}
    waiting: list[type] = list(base.__subclasses__())
    while waiting:
        cls = waiting.pop()
        found[cls] = None
        waiting += cls.__subclasses__()
    return sorted((cls for cls in found if "__dataclass_fields__" in vars(cls)), key=lambda cls: len(cls.__mro__))


def _own_fields(cls: type) -> dict[str, dataclasses.Field]:
    inherited = [getattr(base, "__dataclass_fields__", {}) for base in cls.__mro__[1:]]
    known: dict[str, dataclasses.Field] = vars(cls)["__dataclass_fields__"]
    return {name: field for name, field in known.items() if all(f.get(name) is not field for f in inherited)}


def _handwritten(cls: type, own: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """Which of what ``dataclass`` could have written it has not: it would write something else. The class stays as is.

    Names and file names do not tell: a class made by ``exec`` has functions out of "<string>" too.
    """
    before = {name: vars(cls)[name] for name in _GENERATED if name in vars(cls)}
    _apply_dataclass(cls, own)
    again = {name: vars(cls)[name] for name in _GENERATED if name in vars(cls)}
    for name in again.keys() - before.keys():
        delattr(cls, name)
    for name, value in before.items():
        setattr(cls, name, value)
    return {name: value for name, value in before.items() if _content(value) != _content(again.get(name))}


def _content(value: Any) -> Any:
    """What tells two functions apart: their code, and that of the functions they wrap, as a generated __repr__ does."""
    if not hasattr(value, "__code__"):
        return value
    return value.__code__, _content(getattr(value, "__wrapped__", None))


def _apply_dataclass(cls: type, own: Mapping[str, dataclasses.Field]) -> None:
    """``dataclass`` once more, with the flags that the class has."""
    flags = vars(cls)["__dataclass_params__"]
    match_args = "__match_args__" in vars(cls)
    for name in _GENERATED:
        if name in vars(cls) and name != "__doc__":
            delattr(cls, name)
    if (cls.__doc__ or "").startswith(f"{cls.__name__}("):  # what `dataclass` puts where there is no docstring
        cls.__doc__ = None
    attributes = {name: vars(cls)[name] for name in own if name in vars(cls)}
    for name, field in own.items():
        # `dataclass` has put the default in the place of the Field, of which it would now make a bare field.
        setattr(cls, name, field)
    dataclasses.dataclass(
        init=flags.init,
        repr=flags.repr,
        eq=flags.eq,
        order=flags.order,
        unsafe_hash=flags.unsafe_hash,
        frozen=flags.frozen,
        match_args=match_args,
    )(cls)
    # kw_only stands in every Field; slots, if any, are there.
    cls.__dataclass_params__ = flags  # type: ignore[attr-defined]
    for name, value in attributes.items():
        setattr(cls, name, value)
