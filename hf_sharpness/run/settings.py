"""`--set NAME=VALUE`: arguments for scripts that take none, or not this one."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from collections.abc import Callable
from typing import Any

from ..sharing.values import nearest
from .environment import given_settings

_said: set[str] = set()


def parse(text: str) -> tuple[str, str]:
    """The name and the value of NAME=VALUE.

    Raises:
        ValueError: it has another form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set {text}: must be NAME=VALUE, as in --set optim=wsam")
    return name, value


def install(arguments_class: Any) -> None:
    """Have every instance of the class and its subclasses made with what `--set` gave."""
    if given_settings() and not hasattr(arguments_class.__post_init__, "sets"):
        arguments_class.__post_init__ = _setting(arguments_class.__post_init__)


def _setting(post_init: Callable[[Any], None]) -> Callable[[Any], None]:
    def __post_init__(self: Any) -> None:
        _override(self, given_settings())
        post_init(self)

    __post_init__.sets = True  # type: ignore[attr-defined]
    return __post_init__


def _program_s(arguments: Any, name: str) -> Any:
    """What the program gave, or the default, which a sharpness argument gets only later."""
    value = getattr(arguments, name)
    return getattr(type(arguments), name, None) if value is None else value


def _override(arguments: Any, settings: dict[str, str]) -> None:
    """Set the arguments, before they are checked; the script's own optimizer becomes the base."""
    from ..methods import METHODS  # late, like transformers: `hf-sharpness run` imports neither before its program

    values = {name: _value(type(arguments), name, text) for name, text in settings.items()}
    own = _program_s(arguments, "optim")
    own = getattr(own, "value", own)
    changes = []
    for name, value in values.items():
        before = _program_s(arguments, name)
        setattr(arguments, name, value)
        changes.append(f"{name}={value!r}" + ("" if before in (None, value) else f" in place of {before!r}"))
    if values.get("optim") in METHODS and own not in METHODS and "base_optim" not in values:
        arguments.base_optim = own
        changes.append(f"base_optim={own!r} (the program's optim)")
    said = "hf-sharpness run --set: " + ", ".join(changes)
    if said not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(said)
        print(said, file=sys.stderr, flush=True)


def _value(cls: type, name: str, text: str) -> Any:
    """The value that a text stands for, as HfArgumentParser would read it for this argument.

    Raises:
        ValueError: there is no such argument, or the text is none of its values.
    """
    from transformers import HfArgumentParser

    field = next((f for f in dataclasses.fields(cls) if f.name == name), None)
    if field is None:
        close = nearest(name, (f.name for f in dataclasses.fields(cls)))
        raise ValueError(f"--set {name}={text}: {cls.__name__} has no such argument; {close}".rstrip("; "))
    home = next(c for c in cls.__mro__ if name in vars(c).get("__annotations__", {}))
    hint = typing.get_type_hints(home)[name]
    default = dataclasses.field(default=None, metadata=field.metadata)

    class Parser(HfArgumentParser):
        def error(self, message: str) -> typing.NoReturn:
            raise ValueError(message)

    setting: Any = dataclasses.make_dataclass("Setting", [(name, hint, default)])
    parser = Parser(setting, allow_abbrev=False)
    try:
        return getattr(parser.parse_args([f"--{name}={text}"]), name)
    except ValueError as error:
        message = str(error)
    # Outside, so that argparse's own two errors are not told before it.
    raise ValueError(f"--set {name}={text}: {message}")
