"""The methods, each in a file of its own, and what an author of another one needs.

A file in this folder that registers a method is all there is to it: nobody else names it. For editors and type checkers
``__init__.pyi`` says in so many words what is here: ``scripts/stubs.py`` writes it.
"""

from __future__ import annotations

import importlib
import pkgutil

from .base import Method
from .base_kind import BaseKind
from .hyperparameters import Hyperparameter, check_hyperparameters, hyperparameter, hyperparameters, is_count, is_number
from .options import SCOPES, Options
from .range_form import RangeForm
from .registry import METHODS, register
from .signs import Seen, Sign
from .step import Step

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
_own = {cls.__name__: cls for cls in METHODS.values()}
globals().update(_own)
__all__ = [
    "METHODS",
    "SCOPES",
    "BaseKind",
    "Hyperparameter",
    "Method",
    "Options",
    "RangeForm",
    "Seen",
    "Sign",
    "Step",
    "check_hyperparameters",
    "hyperparameter",
    "hyperparameters",
    "is_count",
    "is_number",
    "register",
]
__all__ += list(_own)
