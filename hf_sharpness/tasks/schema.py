"""Checks values against types with pydantic, and says what is wrong in one line: file, key, value, remedy."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ..sharing.values import short
from .errors import RecipeError, nearest
from .sections import STRICT

Section = TypeVar("Section")

_IN_WORDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_too_short": "a name",
    "string_type": "a string",
}


def build(section_class: type[Section], values: Mapping[str, Any], name: str, origin: str) -> Section:
    """Make a section of checked values.

    Args:
        section_class: Its pydantic dataclass.
        values: By key.
        name: How errors name it: `data`, or empty at the top level.
        origin: How errors name the file; empty where `name` says enough.

    Raises:
        RecipeError: A key is unknown or missing, or a value has the wrong type or is out of range.
    """
    for key in values:
        if key not in get_type_hints(section_class):
            place = f"in section {name}" if name else "at the top level"
            raise unknown(key, place, get_type_hints(section_class), origin)
    try:
        return section_class(**values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = problems[0]["loc"][0]
        of_this_key = [problem for problem in problems if problem["loc"][0] == first]
        where = f"{name}.{first}" if name else str(first)
        raise RecipeError(_explained(of_this_key, where, origin)) from None


def check(value: Any, hint: Any, name: str, origin: str) -> None:
    """Check one value against a type.

    Raises:
        RecipeError: It has another type.
    """
    try:
        _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise RecipeError(_explained(error.errors(include_url=False), name, origin)) from None


def unknown(key: Any, place: str, known: Any, origin: str) -> RecipeError:
    """The error for a key that does not exist; `place` says where it stands."""
    return RecipeError(f"{origin}: unknown key {short(key)} {place}{nearest(str(key), known)}")


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config={**STRICT, "arbitrary_types_allowed": True})


def _explained(problems: list[Any], name: str, origin: str) -> str:
    """What is wrong with the value called `name`, and all that it might have been."""
    inner = [problem for problem in problems if any(isinstance(part, int) for part in problem["loc"])]
    problems = inner or problems  # of a list, only what is wrong in it
    first = problems[0]
    position = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    name = (f"{origin}: " if origin else "") + name + position
    if first["type"] == "missing":
        return f"{name} is missing"
    wanted = [_IN_WORDS.get(p["type"], p["msg"].removeprefix("Input should be ").lower()) for p in problems]
    value = first["input"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    quoted = f'; quote it: "{value}"' if number and "a string" in wanted else ""
    return f"{name}: {short(value)} is not valid: must be {' or '.join(dict.fromkeys(wanted))}{quoted}"
