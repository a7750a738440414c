"""The verdict's rule: every base arm to beat, Holm over the arms, both intervals."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("optuna")

from hf_sharpness.compare.verdict import Pair, decide, detectable

STEADY = np.array([1.0, 1.1, 0.9, 1.2, 1.0, 0.8, 1.1, 0.9])  # p 2/2^8
NOISE = np.array([1.0, -1.1, 0.9, -1.2, 1.0, -0.8, 1.1, -0.9])


def pair(base: str, seeds: np.ndarray, examples: tuple[float, float] | None = (0.5, 1.5)) -> Pair:
    return Pair(base, seeds, None if examples is None else lambda: examples)


def verdict_of(*pairs: Pair, margin: float = 0.1) -> str:
    return decide({"sam": list(pairs)}, margin)["sam"].verdict


def test_it_helps_if_it_beats_every_base_arm():
    assert verdict_of(pair("base", STEADY), pair("averaged", STEADY)) == "helps"
    assert verdict_of(pair("base", STEADY), pair("averaged", NOISE, (-1, 1))) == "undecided"
    assert verdict_of(pair("base", STEADY), pair("averaged", -STEADY, (-1.5, -0.5))) == "undecided"


def test_it_hurts_by_the_same_rule():
    assert verdict_of(pair("base", -STEADY, (-1.5, -0.5)), pair("averaged", -STEADY, (-1.5, -0.5))) == "hurts"
    assert verdict_of(pair("base", -STEADY, (-1.5, 0.1)), pair("averaged", -STEADY, (-1.5, -0.5))) == "undecided"


def test_the_test_examples_must_agree():
    assert verdict_of(pair("base", STEADY, (-0.1, 2.0))) == "undecided"
    assert verdict_of(pair("base", STEADY, None)) == "helps"  # nothing is known of them


def test_the_largest_p_counts_without_a_correction_over_base_arms():
    weaker = STEADY.copy()
    weaker[7] = -0.01  # p 4/2^8
    decision = decide({"sam": [pair("base", STEADY), pair("averaged", weaker)]}, 0.1)["sam"]
    assert decision.p == pytest.approx(4 / 256)


def test_holm_over_the_sharpness_arms_only():
    six = STEADY[:6]  # p .031: enough for one arm, not for three
    one = decide({"sam": [pair("base", six)]}, 0.1)
    three = decide({name: [pair("base", six), pair("averaged", six)] for name in ("sam", "wsam", "xsam")}, 0.1)
    assert one["sam"].verdict == "helps"
    assert {decision.verdict for decision in three.values()} == {"undecided"}
    assert three["sam"].p == pytest.approx(3 / 32)
    eight = decide({name: [pair("base", STEADY)] for name in ("sam", "wsam", "xsam")}, 0.1)
    assert {decision.verdict for decision in eight.values()} == {"helps"}


def test_equivalent_if_both_intervals_lie_within_the_margin_for_every_base_arm():
    small = 0.01 * NOISE
    assert verdict_of(pair("base", small, (-0.05, 0.05)), margin=0.1) == "equivalent"
    assert verdict_of(pair("base", small, (-0.2, 0.05)), margin=0.1) == "undecided"
    assert verdict_of(pair("base", NOISE, (-0.05, 0.05)), margin=0.1) == "undecided"
    assert verdict_of(pair("base", small, (-0.05, 0.05)), pair("averaged", NOISE), margin=0.1) == "undecided"


def test_intervals_over_examples_are_made_only_where_they_decide():
    def never() -> tuple[float, float]:
        raise AssertionError("not needed")

    assert decide({"sam": [Pair("base", NOISE, never)]}, 0.1)["sam"].verdict == "undecided"


def test_what_would_have_been_found():
    noisy = [pair("base", 3.1 / NOISE.std(ddof=1) * NOISE, None)]
    assert detectable(noisy, 1) == pytest.approx(3.6, abs=0.15)
    assert detectable(noisy, 3) > detectable(noisy, 1)
    assert detectable([pair("base", STEADY[:3], None)], 1) == np.inf
