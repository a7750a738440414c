"""How long a study takes, and how many points and seeds fit into a given time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from . import statistics
from .errors import CompareError
from .plan import Plan

_FEWEST_TRIALS = 2


def parse_duration(text: str) -> float:
    """Seconds, from `2h`, `90m`, `1h30m`, `45s` or a plain number of seconds.

    Raises:
        CompareError: It is none of these, or nothing is left.
    """
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        if not text.strip() or found is None:
            raise ValueError
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
    except ValueError:
        raise CompareError(f"--budget: {text!r} is no time; write 2h, 90m, 1h30m or a number of seconds") from None
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise CompareError(f"--budget: {text!r} leaves no time; write 2h, 90m, 1h30m or a number of seconds")
    return total


def duration(seconds: float) -> str:
    """Seconds as people write them."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def expected_seconds(plan: Plan) -> float:
    """The processor time of all runs on one thread; a point still to be chosen counts as the average one."""
    tuning = sum(plan.expected_seconds(run) for run in plan.tuning_runs())
    points = range(len(plan.points))
    final = sum(
        sum(plan.expected_seconds(run) for run in plan.final_runs({arm.name: point for arm in plan.arms}))
        for point in points
    )
    return tuning + final / len(points)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A plan that fits a budget, and in words what was cut and what that costs."""

    plan: Plan
    cut: tuple[str, ...]


def fit(build: Callable[[int, int], Plan], trials: int, seeds: int, budget: float, jobs: int) -> Fitted:
    """Cut tuning points first, then final seeds, until the study fits.

    Args:
        build: Makes the plan with so many tuning points and final seeds.
        trials: Points that were asked for.
        seeds: Final seeds that were asked for.
        budget: Seconds on the clock.
        jobs: Runs at the same time.

    Raises:
        CompareError: Not even the smallest study that could decide anything fits.
    """
    arms = len(build(trials, seeds).sharpness_arms)
    fewest = min(seeds, statistics.seeds_needed(arms))
    candidates = [(count, seeds) for count in range(trials, min(trials, _FEWEST_TRIALS) - 1, -1)]
    candidates += [(candidates[-1][0], count) for count in range(seeds - 1, fewest - 1, -1)]
    for trial_count, seed_count in candidates:
        plan = build(trial_count, seed_count)
        if expected_seconds(plan) <= budget * jobs:
            return Fitted(plan, _cut(trials, trial_count, seeds, seed_count, arms))
    needed = duration(expected_seconds(plan) / jobs)
    raise CompareError(
        f"--budget: {duration(budget)} is too little: {len(plan.points)} tuning points and "
        f"{len(plan.final_seeds)} seeds, the fewest with which {arms} arms can be told from the base, take {needed}; "
        "compare fewer arms (--arms), train for fewer steps or on fewer examples, or give more time"
    )


def power_in_words(seeds: int, arms: int) -> str:
    """What so many seeds can find, in standard deviations of a paired difference, before any is known."""
    effect = statistics.detectable_effect(np.ones((1, 1)), seeds, statistics.LEVEL / arms)
    if effect == float("inf"):
        between = "an arm and the base" if arms == 1 else f"{arms} arms and the base"
        return f"{seeds} seeds can decide nothing between {between}; it takes {statistics.seeds_needed(arms)}"
    return f"{seeds} seeds find {effect:.1f} standard deviations of a paired difference in four cases of five"


def _cut(trials: int, fewer_trials: int, seeds: int, fewer_seeds: int, arms: int) -> tuple[str, ...]:
    words = []
    if fewer_trials < trials:
        words.append(f"the budget cut the tuning points from {trials} to {fewer_trials}: every arm is tuned less")
    if fewer_seeds < seeds:
        words.append(
            f"the budget cut the final seeds from {seeds} to {fewer_seeds}: {power_in_words(fewer_seeds, arms)}, where "
            f"{power_in_words(seeds, arms)}"
        )
    return tuple(words)
