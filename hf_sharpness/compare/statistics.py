"""The statistics of a study: exact tests, intervals and the effect that it could have found, on paired differences.

A difference is (arm - base) of one seed, in the metric's own units, positive where the arm is better.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import stats

Interval = tuple[float, float]

LEVEL = 0.05
"""Two-sided level of the tests; intervals have 1 - LEVEL."""
_EXACT_UP_TO = 14
"""Differences whose signs are all enumerated (2^14 ways); beyond, that many are drawn at random, with a fixed seed."""
_RESAMPLES = 4_000
_STUDIES = 4_000


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of the sign-flip test of a mean of zero: exact for up to 14 differences.

    Args:
        differences: [seeds].
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf if len(differences) <= _EXACT_UP_TO else 2**_EXACT_UP_TO - 1,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p that the sign-flip test can give: 2 / 2^seeds."""
    return min(1.0, 2.0 ** (1 - seeds))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment: each p times the number of hypotheses not yet passed, never below an earlier one."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return adjusted


def seed_interval(differences: np.ndarray) -> Interval:
    """The t interval of the mean difference over seeds; without bounds for fewer than two seeds."""
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return -np.inf, np.inf
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high)


def example_interval(differences: np.ndarray) -> Interval:
    """The percentile bootstrap interval of a mean over test examples.

    Args:
        differences: [test examples], the difference of each example's score, averaged over seeds.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2 or np.ptp(differences) == 0:
        value = float(differences.mean()) if len(differences) else 0.0
        return value, value
    result = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=1 - LEVEL,
        method="percentile",
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


@functools.lru_cache(maxsize=32)
def _signs(seeds: int) -> np.ndarray:
    """Half of all sign patterns [patterns, seeds]; the other half mirrors them. At random for more than 14 seeds."""
    if seeds > _EXACT_UP_TO:
        return np.random.default_rng(0).choice([-1.0, 1.0], size=(2 ** (_EXACT_UP_TO - 1), seeds))
    patterns = np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)[None, :] & 1
    return 1.0 - 2.0 * patterns


def _positive_and_significant(samples: np.ndarray, level: float) -> np.ndarray:
    """For each row of `samples` [studies, seeds]: whether its mean is positive with a sign-flip p <= level."""
    signs = _signs(samples.shape[1])
    sums = samples @ signs.T
    observed = samples.sum(axis=1)
    tolerance = 1e-12 * np.abs(samples).sum(axis=1)
    share = (np.abs(sums) >= (observed - tolerance)[:, None]).mean(axis=1)
    return (observed > 0) & (share <= level + 1e-12)


def detectable_effect(
    covariance: np.ndarray, seeds: int, level: float = LEVEL, thresholds: np.ndarray | None = None
) -> float:
    """The smallest effect, the same over every base arm, that the whole rule finds with a chance of 80 %.

    Found by simulation: normal differences of the given covariance, the same draws for every effect.

    Args:
        covariance: [bases, bases], of one seed's differences to the base arms.
        seeds: number of final seeds.
        level: of each test, LEVEL / (number of sharpness arms) for Holm's first step.
        thresholds: [bases], what a mean difference must exceed for the bootstrap over test examples to agree: half
            the width of its interval. Default None: nothing.

    Returns:
        The effect in the units of the differences; infinity where no effect could be found.
    """
    covariance = np.atleast_2d(np.asarray(covariance, dtype=np.float64))
    bases = len(covariance)
    limits = np.zeros(bases) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if smallest_p(seeds) > level + 1e-12 or not np.all(np.isfinite(covariance)):
        return float("inf")
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0.0, None))
    studies = _STUDIES if seeds <= 10 else _STUDIES // 4
    noise = np.random.default_rng(0).standard_normal((studies, seeds, bases)) @ root.T

    def power(effect: float) -> float:
        found = np.ones(studies, dtype=bool)
        for base in range(bases):
            samples = noise[:, :, base] + effect
            found &= _positive_and_significant(samples, level) & (samples.mean(axis=1) > limits[base])
        return float(found.mean())

    low, high = 0.0, 10.0 * float(np.sqrt(covariance.diagonal().max())) + 2.0 * float(limits.max()) + 1e-12
    if power(high) < 0.8:
        return float("inf")
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= 0.8 else (middle, high)
    return high


def seeds_needed(arms: int) -> int:
    """The fewest seeds with which an arm can be significant under Holm over that many sharpness arms."""
    seeds = 2
    while smallest_p(seeds) * arms > LEVEL:
        seeds += 1
    return seeds
