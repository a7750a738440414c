"""What is said of state that could not be put back."""

from __future__ import annotations

from .bounds import MOST
from .paths import name_of
from .tensors import Watched

CUT = (
    f"more than {MOST:,} objects can be reached from the model, its loss, the Trainer and the training data: those "
    "beyond are not looked at, so that what a further pass changes in them is not put back. Hold large records in "
    "tensors or NumPy arrays instead of many small objects"
)


def changed_unseen(watched: Watched, what: str) -> str:
    """The warning for a tensor that was changed, and that there is no copy of.

    Args:
        watched: the tensor.
        what: the further passes of the step have done.
    """
    return (
        f"{name_of(watched.path)} ({watched.alias.dtype}, {watched.alias.numel()} elements) was changed in a training "
        f"step for the first time, which was noticed when it had happened: the further passes of this step {what}. "
        "From now on it is put back for them"
    )
