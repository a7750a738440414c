"""Which of a Trainer's attributes its training loop changes between the calls of ``training_step``."""

from __future__ import annotations

from torch import Tensor


class ChangedByOthers:
    """Numbers and tensors that an object's owner changes while nobody counts a step: they are the owner's.

    Args:
        owner: the object.

    Attributes:
        names: of the attributes.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.names: set[str] = set()
        self.paused: dict[str, object] = {}

    def pause(self) -> None:
        """From now on others count."""
        self.paused = _marks(self.owner)

    def go_on(self) -> None:
        """They have counted."""
        marks = _marks(self.owner)
        self.names |= {name for name, mark in self.paused.items() if marks.get(name) != mark}


def _marks(owner: object) -> dict[str, object]:
    """For every number and tensor something that differs once it has changed."""
    marks: dict[str, object] = {}
    for name, value in vars(owner).items():
        if type(value) in (int, float):
            marks[name] = value
        elif isinstance(value, Tensor):
            marks[name] = id(value), value._version
    return marks
