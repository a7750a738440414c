"""The methods, each in a file of its own, and what an author of another one needs."""

from .base import Method
from .hyperparameters import Hyperparameter, check_hyperparameters, hyperparameter, hyperparameters, is_count, is_number
from .options import SCOPES, Options
from .registry import METHODS, register
from .sam import SAM
from .step import Step
from .wsam import WSAM
from .xsam import XSAM

__all__ = [
    "METHODS",
    "SAM",
    "SCOPES",
    "WSAM",
    "XSAM",
    "Hyperparameter",
    "Method",
    "Options",
    "Step",
    "check_hyperparameters",
    "hyperparameter",
    "hyperparameters",
    "is_count",
    "is_number",
    "register",
]
