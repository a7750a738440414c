"""The sharpness arguments as fields of a dataclass, made from the registered methods.

For editors and type checkers ``fields.pyi`` says the same in so many words: ``scripts/stubs.py`` writes it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .definitions import defaults, definitions
from .late_fields import set_fields


@dataclasses.dataclass
class ArgumentFields:
    """The sharpness arguments. None stands for "not given": the arguments put the default in its place."""


def make_fields() -> None:
    """Give ``ArgumentFields``, and every class of arguments that derives from it, the fields of today's methods."""
    made = {name: (hint, _field(*text, choices)) for name, (hint, text, choices) in definitions().items()}
    set_fields(ArgumentFields, made)
    for name, default in defaults(None).items():
        # What arguments show that were made, or pickled, before the method was registered.
        setattr(ArgumentFields, name, default)


def _field(default: str, meaning: str, choices: Any) -> Any:
    # argparse would add the field's own default, None, if the help did not use it.
    metadata = {"help": f"{meaning} (default: {default})".replace("%", "%%") + "%(default).0s"}
    return dataclasses.field(default=None, metadata={**metadata, **({"choices": list(choices)} if choices else {})})


make_fields()
