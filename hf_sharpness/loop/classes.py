"""The plain-loop classes of this package's methods, made from the methods.

For editors and type checkers ``classes.pyi`` says the same in so many words: ``scripts/stubs.py`` writes it.
"""

from __future__ import annotations

from ..methods import METHODS
from . import loop_class

_made = {method.__name__: loop_class(method) for method in METHODS.values()}
globals().update(_made)
__all__ = list(_made)
