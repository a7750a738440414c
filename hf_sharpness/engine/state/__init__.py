"""What passes leave behind besides weights and gradients: found, noted, and put back."""

from .copies import copied, is_iterator
from .generators import RandomState, accelerators_of
from .moment import Moment
from .paths import Root
from .state import State
from .visits import visit_of

__all__ = ["Moment", "RandomState", "Root", "State", "accelerators_of", "copied", "is_iterator", "visit_of"]
