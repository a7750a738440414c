"""What the data bear: helps, hurts, equivalent or undecided, and one sentence that says no more."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import statistics
from .statistics import LEVEL, Interval

HELPS, HURTS, EQUIVALENT, UNDECIDED, DIVERGED = "helps", "hurts", "equivalent", "undecided", "diverged"
NONE = "no verdict"
"""In a sweep, which tunes nothing."""


@dataclasses.dataclass
class Pair:
    """An arm beside one of its base arms: gains of one seed or one test example, positive where the arm is better.

    Args:
        base: Name of the base arm.
        seeds: [seeds].
        resampled: Returns the interval of the mean gain under resampling of test examples. None where the runs do not
            tell each example's score.
    """

    base: str
    seeds: np.ndarray
    resampled: Callable[[], Interval] | None = None

    @property
    def mean(self) -> float:
        """The mean gain."""
        return float(self.seeds.mean())

    @functools.cached_property
    def p(self) -> float:
        """Exact two-sided p over the seeds."""
        return statistics.sign_flip_p(self.seeds)

    @functools.cached_property
    def seed_interval(self) -> Interval:
        """The interval over seeds."""
        return statistics.seed_interval(self.seeds)

    @functools.cached_property
    def example_interval(self) -> Interval | None:
        """The interval over test examples."""
        return None if self.resampled is None else self.resampled()

    def examples_agree(self, sign: float) -> bool:
        """Whether the interval over test examples lies on that side of zero; without one there is no objection."""
        interval = self.example_interval
        return interval is None or min(sign * interval[0], sign * interval[1]) > 0

    def within(self, margin: float) -> bool:
        """Whether both intervals lie within the margin."""
        if max(abs(bound) for bound in self.seed_interval) > margin:
            return False
        return self.example_interval is None or max(abs(bound) for bound in self.example_interval) <= margin


@dataclasses.dataclass(frozen=True)
class Decision:
    """The verdict on one arm.

    Args:
        verdict: `helps`, `hurts`, `equivalent`, `undecided`, `diverged` or `no verdict`.
        p: The largest p over its base arms, after Holm's adjustment over the sharpness-aware arms.
    """

    verdict: str
    p: float


def decide(pairs: Mapping[str, Sequence[Pair]], margin: float) -> dict[str, Decision]:
    """Decide on every sharpness-aware arm.

    An arm helps if it beats every one of its base arms: the largest p counts and there is no correction over them
    (an intersection-union test), Holm's is over the arms, and the interval over test examples must agree. It hurts by
    the same rule turned round. It is equivalent if both intervals lie within the margin, for every base arm.

    Args:
        pairs: Arm -> its pairs, one for each base arm.
        margin: In the unit of the gains.
    """
    adjusted = statistics.holm({arm: max(pair.p for pair in own) for arm, own in pairs.items()})
    return {arm: Decision(_verdict(own, adjusted[arm], margin), adjusted[arm]) for arm, own in pairs.items()}


def _verdict(pairs: Sequence[Pair], p: float, margin: float) -> str:
    if p <= LEVEL:
        for sign, verdict in ((1.0, HELPS), (-1.0, HURTS)):
            if all(sign * pair.mean > 0 and pair.examples_agree(sign) for pair in pairs):
                return verdict
    if all(pair.within(margin) for pair in pairs):
        return EQUIVALENT
    return UNDECIDED


def detectable(pairs: Sequence[Pair], arms: int) -> float:
    """The gain over every base arm that a study like this one finds in four cases of five.

    Args:
        pairs: An arm's pairs, whose noise is taken for that of the study.
        arms: Number of sharpness-aware arms.
    """
    gains = np.stack([pair.seeds for pair in pairs])
    if gains.shape[1] < 2:
        return float("inf")
    halves = []
    for pair in pairs:
        interval = pair.example_interval
        halves.append(0.0 if interval is None else (interval[1] - interval[0]) / 2)
    return statistics.detectable_effect(np.cov(gains), gains.shape[1], LEVEL / arms, np.array(halves))
