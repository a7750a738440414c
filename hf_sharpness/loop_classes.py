"""The plain-loop classes of this package's methods, made from the methods.

For editors and type checkers ``loop_classes.pyi`` says the same in so many words: ``scripts/stubs.py`` writes it.
"""

from __future__ import annotations

from .loop import loop_class
from .methods import METHODS

_made = {method.__name__: loop_class(method) for method in METHODS.values()}
globals().update(_made)
__all__ = list(_made)
