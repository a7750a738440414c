"""Runs a method's passes safely between the backward pass and the base optimizer's step. Knows torch only."""

from .engine import Engine
from .passes import Closure

__all__ = ["Closure", "Engine"]
