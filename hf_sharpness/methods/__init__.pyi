# Written by scripts/stubs.py from the methods: change them instead.

from .base import Method as Method
from .base_kind import BaseKind as BaseKind
from .hyperparameters import Hyperparameter as Hyperparameter
from .hyperparameters import check_hyperparameters as check_hyperparameters
from .hyperparameters import hyperparameter as hyperparameter
from .hyperparameters import hyperparameters as hyperparameters
from .hyperparameters import is_count as is_count
from .hyperparameters import is_number as is_number
from .options import SCOPES as SCOPES
from .options import Options as Options
from .range_form import RangeForm as RangeForm
from .registry import METHODS as METHODS
from .registry import register as register
from .sam import SAM as SAM
from .signs import Seen as Seen
from .signs import Sign as Sign
from .step import Step as Step
from .wsam import WSAM as WSAM
from .xsam import XSAM as XSAM

__all__ = [
    "METHODS",
    "SAM",
    "SCOPES",
    "WSAM",
    "XSAM",
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
