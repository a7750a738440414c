"""Which arguments of a dataclass its maker named, and which are defaults: a constructor cannot tell by itself.

``HfArgumentParser`` passes every argument to the constructor, given or not. An argument whose field has ``MARK`` as
metadata gets a default there that equals the plain one and can be told from it. Called otherwise, a constructor sees
exactly the arguments that were written down.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from typing import Any


class _DefaultFloat(float):
    pass


class _DefaultInt(int):
    pass


class _DefaultStr(str):
    __slots__ = ()

    def __str__(self) -> str:  # argparse runs a string default through its type: str(default) must stay marked
        return self


class _DefaultBool(int):
    def __repr__(self) -> str:
        return str(bool(self))

    __str__ = __repr__


_MARKED = {float: _DefaultFloat, int: _DefaultInt, str: _DefaultStr, bool: _DefaultBool}
_PLAIN = {_DefaultFloat: float, _DefaultInt: int, _DefaultStr: str.__str__, _DefaultBool: bool}


class _Flag(argparse.Action):
    """argparse's own ``store``, with a marked default."""

    def __init__(self, *args: Any, default: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, default=_MARKED.get(type(default), lambda value: value)(default), **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values)


MARK: dict[str, Any] = {"action": _Flag}
"""Metadata of a dataclass field (None, or a number, string or bool; a bool must default to False)."""


def note(instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Remember, in ``__new__``, which arguments the constructor was called with."""
    if args or kwargs:
        positional = [f.name for f in dataclasses.fields(instance) if f.init and not f.kw_only][: len(args)]
        instance.__dict__["_noted"] = {*positional, *kwargs}


def settle(instance: Any, names: Iterable[str]) -> set[str]:
    """Make marked defaults plain, in ``__post_init__``.

    Args:
        instance: the dataclass instance, whose fields are set.
        names: the arguments in question.

    Returns:
        Those that were given. None counts as not given. Where a subclass declares an argument anew, without the
        mark, a value that equals its default counts as not given.
    """
    noted = instance.__dict__.pop("_noted", set())
    given = set()
    fields = {field.name: field for field in dataclasses.fields(instance)}
    for name in names:
        value, field = getattr(instance, name), fields[name]
        if type(value) in _PLAIN:
            setattr(instance, name, _PLAIN[type(value)](value))
        elif value is None:
            continue
        elif value != field.default or (name in noted and field.metadata.get("action") is _Flag):
            given.add(name)
    return given
