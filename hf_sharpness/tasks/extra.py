"""The packages of the `recipes` extra: whether all are there, before anything is read or trained."""

from __future__ import annotations

import importlib.util

from .errors import RecipeError

MODULES = {
    "datasets": "datasets",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "sklearn": "scikit-learn",
}
"""Module -> the package that it comes with."""
INSTALL = "pip install 'hf_sharpness[recipes]'"


def require_recipes_extra(command: str) -> None:
    """Make sure that recipes can be trained.

    Args:
        command: What needs them, for the error.

    Raises:
        RecipeError: Packages are missing; names all of them and the command that installs them.
    """
    missing = [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RecipeError(f"{command} needs packages that are not installed ({', '.join(missing)}): `{INSTALL}`")
