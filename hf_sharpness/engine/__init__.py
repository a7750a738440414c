"""Runs a method's passes safely between the backward pass and the base optimizer's step. Knows torch only."""

from .engine import Engine
from .micro_batch import Closure

__all__ = ["Closure", "Engine"]
