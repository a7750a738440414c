"""What a method can say of its hyper-parameters while a training runs: that they do not fit, seen from its logs.

    def gamma_too_small(seen: Seen) -> str | None:
        return f"{seen.named('gamma')} is too small: ..." if seen.losses[-1] > 9 else None

    class Mine(Method):
        signs = (gamma_too_small,)

Each sign is one warning that names the argument and the remedy. The thresholds are coarse on purpose: a training that
goes well, however noisy, must pass in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

LONG = 10
"""How many logs in a row are long."""
FEW = 5
"""How many logs make a mean."""
CHANCE = 3
"""How often in a row something is no chance: a search that ends at the same place, a rise of the evaluation loss."""


class Seen(Protocol):
    """What a sign looks at.

    Attributes:
        losses: the training loss of every log so far.
        sharpness: the sharpness of every log, 0 where none was measured.
        ratios: of those logs that have it, the metric that ``Method.step_ratio`` names.
    """

    losses: list[float]
    sharpness: list[float]
    ratios: list[float]

    @property
    def method(self) -> Any:
        """The method at work, resolved."""

    def named(self, field: str) -> str:
        """A hyper-parameter as an argument with its value."""

    def argument(self, field: str) -> str | None:
        """What a hyper-parameter is called among the arguments; None where the method has none of the name."""


Sign = Callable[[Seen], str | None]
"""What the user is told, with a remedy; None as long as nothing is wrong."""


def mean(values: Sequence[float]) -> float:
    """The mean of some logs."""
    return sum(values) / len(values)
