"""Which code is the user's own, and which of a script's variables it refers to."""

from __future__ import annotations

import dis
import functools
import sys
import types

LIBRARIES = ("site-packages", "dist-packages")


@functools.lru_cache(maxsize=4096)
def is_own(module: str) -> bool:
    """Whether a module, by its name, is the user's: not installed, and no part of Python or of this package."""
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names and package != "__main__":
        return False
    if package in ("builtins", "hf_sharpness", "torch", "transformers", "accelerate"):
        return False
    loaded = sys.modules.get(module)
    file = vars(loaded).get("__file__") if isinstance(loaded, types.ModuleType) else None
    return not (isinstance(file, str) and any(name in file for name in LIBRARIES))


def functions_of(kind: type) -> list[types.FunctionType]:
    """The functions that a class defines, those of properties and of static and class methods among them."""
    found = []
    for value in vars(kind).values():
        for function in (value, getattr(value, "fget", None), getattr(value, "__func__", None)):
            if type(function) is types.FunctionType:
                found.append(function)
    return found


@functools.lru_cache(maxsize=4096)
def names_in(code: types.CodeType) -> frozenset[str]:
    """The names that code refers to, functions inside it included: its global variables, among others."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
    return frozenset(names)


@functools.lru_cache(maxsize=4096)
def globals_set_in(code: types.CodeType) -> frozenset[str]:
    """The global variables that code binds (``global name``), functions inside it included."""
    inner = [globals_set_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = (i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL")
    return frozenset(own).union(*inner)
