"""The methods, each in a file of its own. A new one is such a file and a line in METHODS."""

from .base import Method, check_hyperparameters, hyperparameter
from .sam import SAM
from .step import Step
from .wsam import WSAM
from .xsam import XSAM

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (SAM, WSAM, XSAM)}

__all__ = ["METHODS", "SAM", "WSAM", "XSAM", "Method", "Step", "check_hyperparameters", "hyperparameter"]
