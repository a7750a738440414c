"""What is compared on: a recipe or a script. Both can say what they are, measure their costs, and make a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .arms import Arm
from .cost import Cost, Scale
from .plan import Length

NO_TEST = "no separate test"


@dataclasses.dataclass(frozen=True)
class Own:
    """What the recipe or script does when it is left alone.

    Args:
        learning_rate: Its learning rate.
        length: Its training length.
        base_optim: The base optimizer: that of its sharpness-aware method, or its optimizer.
        sharpness: Its own sharpness arguments.
    """

    learning_rate: float
    length: Length
    base_optim: str
    sharpness: dict[str, Any]


class Subject(Protocol):
    """A recipe or a script, with the primary metric chosen."""

    name: str
    mode: str
    metric: str
    greater_is_better: bool
    averaging: bool

    def own(self) -> Own:
        """What it does by itself."""

    def question(self) -> dict[str, Any]:
        """What identifies it, in JSON's types."""

    def facts(self) -> dict[str, str]:
        """What a reader must know of its data."""

    def check(self, arms: Sequence[Arm]) -> None:
        """Refuse arms that cannot train, before anything runs."""

    def costs(self, arms: Sequence[Arm]) -> tuple[dict[str, Cost], Scale]:
        """Measure the arms' steps."""

    def decay(self, total_steps: int) -> int:
        """The step at which its learning rate begins its last fall in a training of so many."""

    def run(self, arguments: Mapping[str, Any], seed: int, final: bool, averages: Sequence[str]) -> dict[str, Any]:
        """Make one run and return its record."""
