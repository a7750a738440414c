"""Writes the stubs of the modules that are made from the methods, for editors and type checkers.

python scripts/stubs.py            # print them
python scripts/stubs.py --write    # put them beside the modules
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import hf_sharpness
import hf_sharpness.methods
from hf_sharpness.loop import loop_class
from hf_sharpness.methods import METHODS, Method
from hf_sharpness.sharpness_arguments.definitions import definitions, hyperparameter_arguments
from hf_sharpness.sharpness_arguments.fields import ArgumentFields, make_fields

PACKAGE = Path(hf_sharpness.__file__).parent
ABOUT = "# Written by scripts/stubs.py from the methods: change them instead.\n"


def fields() -> str:
    """The stub of ``hf_sharpness/sharpness_arguments/fields.py``."""
    # Of the two types that an argument may have, HfArgumentParser is told one.
    types = {name: hint for name, (hint, *_) in definitions().items()}
    types |= {name: hyperparameter.type for name, hyperparameter in hyperparameter_arguments().items()}
    fields = [f"    {name}: {inspect.formatannotation(hint)} = ..." for name, hint in types.items()]
    return f"""{ABOUT}
from dataclasses import dataclass

@dataclass
class ArgumentFields:
    {_quoted(ArgumentFields)}

{chr(10).join(fields)}

def make_fields() -> None:
    {_quoted(make_fields)}
"""


def methods() -> str:
    """The stub of ``hf_sharpness/methods/__init__.py``."""
    tree = ast.parse((PACKAGE / "methods" / "__init__.py").read_text())
    relative = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    homes = {alias.name: node.module for node in relative for alias in node.names}
    homes |= {cls.__name__: cls.__module__.rpartition(".")[2] for cls in METHODS.values()}
    imports = "\n".join(f"from .{home} import {name} as {name}" for name, home in homes.items())
    return f"{ABOUT}\n{imports}\n\n__all__ = {hf_sharpness.methods.__all__!r}\n"


def classes() -> str:
    """The stub of ``hf_sharpness/loop/classes.py``."""
    classes = "\n".join(_loop_class(method) for method in METHODS.values())
    names = ", ".join(f'"{method.__name__}"' for method in METHODS.values())
    return f"""{ABOUT}
from typing import Any

import torch
from torch import nn

from .. import methods
from . import SharpnessAware

__all__ = [{names}]

{classes}"""


def _loop_class(method: type[Method]) -> str:
    name = method.__name__
    parameters, star = [], False
    for parameter in inspect.signature(loop_class(method).__init__).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        hint = "" if parameter.name == "self" else f": {_named(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parameters.append(f"{parameter.name}{hint}{default}")
    properties = {"method": f"methods.{name}"}
    for shown, source in method.shown.items():
        properties[shown] = _named(get_type_hints(getattr(method, source).fget)["return"])
    lines = [
        f"class {name}(SharpnessAware):",
        f"    {_quoted(loop_class(method))}",
        f"    def __init__({', '.join(parameters)}) -> None: ...",
        *(f"    @property\n    def {name}(self) -> {hint}: ..." for name, hint in properties.items()),
    ]
    return "\n".join(lines) + "\n"


def _named(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _quoted(documented: Any) -> str:
    text = inspect.getdoc(documented) or ""
    return textwrap.indent(f'"""{text}' + ("\n" if "\n" in text else "") + '"""', "    ").lstrip()


STUBS = {"sharpness_arguments/fields.pyi": fields, "loop/classes.pyi": classes, "methods/__init__.pyi": methods}


def stub(name: str) -> str:
    """The text of a stub by its file's name."""
    text = STUBS[name]()
    for command in (["check", "--fix-only", "--quiet"], ["format"]):
        command = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PACKAGE / name), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    for name in STUBS:
        if "--write" in sys.argv:
            (PACKAGE / name).write_text(stub(name))
        else:
            print(stub(name))
