"""The settings that tuning tries: Sobol points of learning rate and length, the same for every arm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import qmc

from .arms import Arm

RATE_FACTOR = 3.0
"""Learning rates lie within this factor of the recipe's, either way."""
SHORTEST = 0.25
"""Trainings are at least this share of the arm's cap long."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of the unit cube, as fractions of what they stand for.

    Args:
        rate: Of the logarithmic range of learning rates.
        length: Of the range of training lengths.
        riding: Argument -> position among the values it is chosen from.
    """

    rate: float
    length: float
    riding: Mapping[str, float]

    def learning_rate(self, own: float) -> float:
        """The learning rate, given the recipe's own; three significant digits."""
        return float(f"{own * RATE_FACTOR ** (2 * self.rate - 1):.3g}")

    def share(self) -> float:
        """The training length as a share of the arm's cap."""
        return SHORTEST + (1 - SHORTEST) * self.length

    def chosen(self, arm: Arm) -> dict[str, Any]:
        """The values of what the arm leaves open."""
        return {
            argument: values[min(int(self.riding[argument] * len(values)), len(values) - 1)]
            for argument, values in arm.choices.items()
        }


UNTUNED = Point(0.5, 1.0, {})
"""The recipe's own learning rate, at the arm's longest: the one point of a sweep, in which nothing is tuned."""


def sobol_points(count: int, arms: Sequence[Arm]) -> list[Point]:
    """The first `count` points of a scrambled Sobol sequence over rate, length and what arms choose, a fixed one."""
    riding = sorted({argument for arm in arms for argument in arm.choices})
    sequence = qmc.Sobol(2 + len(riding), scramble=True, seed=0)
    rows = sequence.random_base2(max(1, (count - 1).bit_length()))[:count]
    return [Point(float(row[0]), float(row[1]), dict(zip(riding, map(float, row[2:]), strict=True))) for row in rows]
