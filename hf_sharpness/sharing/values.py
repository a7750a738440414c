"""Values out of a file that somebody else wrote: of which type they are, and how an error shows them."""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Iterable
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of exactly the type, or one of the types, of a hint (an int serves as a float)."""
    types = typing.get_args(hint) or (hint,)
    return type(value) in types or (type(value) is int and float in types)


def described(hint: Any) -> str:
    """The hint in words, as in "must be a number or null"."""
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a string", type(None): "null"}
    return " or ".join(words[t] for t in typing.get_args(hint) or (hint,))


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like one that is not known, or None where none is like it."""
    return next(iter(difflib.get_close_matches(name[:100], list(known), n=1)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the known name most like it, or nothing."""
    close = closest(name, known)
    return f"did you mean {close!r}? " if close else ""


def short(value: Any) -> str:
    """A value in an error message: ASCII, and not long."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 80, 80, 80
