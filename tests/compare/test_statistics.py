"""Tests and intervals against closed forms, plain enumeration and other libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("rliable")

from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from hf_sharpness.compare import statistics

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 10])
def test_the_sign_flip_test_is_the_enumeration(seeds):
    differences = RNG.normal(0.4, 1.0, seeds)
    means = [np.mean(np.array(signs) * differences) for signs in itertools.product((-1, 1), repeat=seeds)]
    expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert statistics.sign_flip_p(differences) == pytest.approx(expected)


@pytest.mark.parametrize(("seeds", "p"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_the_smallest_p(seeds, p):
    assert statistics.smallest_p(seeds) == p
    assert statistics.sign_flip_p(np.arange(1.0, seeds + 1)) == p


def test_ties_and_nothing_at_all():
    assert statistics.sign_flip_p(np.zeros(8)) == 1.0
    assert statistics.sign_flip_p(np.array([0.5])) == 1.0
    assert statistics.sign_flip_p(np.full(8, -0.1)) == 0.0078125  # equal steps: sums must not miss a tie by rounding


def test_many_seeds_are_drawn_and_always_alike():
    differences = RNG.normal(0.3, 1.0, 20)
    p = statistics.sign_flip_p(differences)
    assert p == statistics.sign_flip_p(differences)
    means = RNG.choice([-1.0, 1.0], size=(100_000, 20)) @ differences / 20
    assert p == pytest.approx(np.mean(np.abs(means) >= abs(differences.mean())), abs=0.02)


def test_holm_is_holm():
    values = dict(zip("abcdef", RNG.uniform(0, 0.1, 6), strict=True))
    expected = multipletests(list(values.values()), method="holm")[1]
    assert [statistics.holm(values)[name] for name in values] == pytest.approx(list(expected))
    assert statistics.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert statistics.holm({}) == {}


def test_six_seeds_can_never_be_significant_among_three_arms_and_eight_can():
    best = statistics.holm({arm: statistics.smallest_p(6) for arm in "abc"})
    assert min(best.values()) > statistics.LEVEL
    assert max(statistics.holm({arm: statistics.smallest_p(8) for arm in "abc"}).values()) == pytest.approx(3 / 128)
    assert [statistics.seeds_needed(arms) for arms in (1, 2, 3, 4)] == [6, 7, 7, 8]


def test_the_seed_interval_is_students():
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * np.std(differences, ddof=1) / np.sqrt(5)  # t(4) at .975
    assert statistics.seed_interval(differences) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert statistics.seed_interval(np.array([1.0])) == (-np.inf, np.inf)
    assert statistics.seed_interval(np.full(4, 0.5)) == (0.5, 0.5)


def test_the_example_interval_is_that_of_the_normal_approximation():
    differences = RNG.choice([-1.0, 0.0, 1.0], size=2000, p=[0.1, 0.7, 0.2])
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    low, high = statistics.example_interval(differences)
    assert low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.1 * half)
    assert statistics.example_interval(np.zeros(10)) == (0.0, 0.0)


@pytest.mark.parametrize(("seeds", "level"), [(8, 0.05), (12, 0.05), (8, 0.05 / 3)])
def test_the_detectable_effect_of_one_base_arm_is_nearly_that_of_the_t_test(seeds, level):
    expected = TTestPower().solve_power(nobs=seeds, alpha=level, power=0.8)
    found = statistics.detectable_effect(np.array([[3.1**2]]), seeds, level)
    assert found / 3.1 == pytest.approx(expected, rel=0.08)


def test_eight_seeds_and_three_points_of_noise():
    """A standard deviation of 3.1 points and eight seeds: 3.6 points."""
    assert statistics.detectable_effect(np.array([[3.1**2]]), 8) == pytest.approx(3.6, abs=0.15)


def test_more_to_beat_takes_more():
    one = statistics.detectable_effect(np.eye(1), 8)
    assert statistics.detectable_effect(np.eye(3), 8) > one
    assert statistics.detectable_effect(np.ones((3, 3)), 8) == pytest.approx(one, rel=0.05)  # three times the same
    assert statistics.detectable_effect(np.eye(1) * 1e-8, 8, thresholds=np.array([2.0])) == pytest.approx(2.0, rel=1e-2)
    assert statistics.detectable_effect(np.eye(1), 5) == np.inf
    assert statistics.detectable_effect(np.array([[np.nan]]), 8) == np.inf


def test_the_detectable_effect_is_found_in_four_of_five_studies():
    """Counted anew, with other noise and the test itself."""
    covariance = np.array([[1.0, 0.5], [0.5, 2.0]])
    effect = statistics.detectable_effect(covariance, 8, 0.025)
    noise = RNG.multivariate_normal([effect, effect], covariance, size=(600, 8))
    found = [
        all(statistics.sign_flip_p(study[:, base]) <= 0.025 and study[:, base].mean() > 0 for base in range(2))
        for study in noise
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
