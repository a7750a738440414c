"""The instrument itself: studies of base against base, resampled from real runs, and effects that were put there.

`bank.npz` (made by `make_bank.py`) holds 144 real runs: six points of rate and length, 24 seeds each. A study draws its
tuning and final runs from it, every arm with seeds of its own, which is the worst case: real arms share them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")

from studies import a_plan

from hf_sharpness.compare.choice import choose
from hf_sharpness.compare.judge import pairs_of
from hf_sharpness.compare.outcomes import collect
from hf_sharpness.compare.packing import pack, unpack
from hf_sharpness.compare.plan import FINAL, Plan
from hf_sharpness.compare.verdict import decide, detectable

pytestmark = pytest.mark.slow

STUDIES, POWERED = 5_000, 1_000
ALLOWED = 0.056  # 5 %, and two standard errors of 5,000 studies


class Bank:
    """The runs of the bank as records, ready to be dealt out."""

    def __init__(self) -> None:
        content = dict(np.load(Path(__file__).with_name("bank.npz")))
        self.labels = content["labels"].astype(np.int64)
        self.points, self.seeds = content["plain_scores"].shape
        self.predictions = content["plain_predictions"]
        self.records = [
            [self._record(content, point, seed) for seed in range(self.seeds)] for point in range(self.points)
        ]

    def _record(self, content: Any, point: int, seed: int) -> dict[str, Any]:
        def look(name: str) -> dict[str, Any]:
            predictions = content[f"{name}_predictions"][point, seed]
            return {
                "eval": {"accuracy": float(content[f"{name}_scores"][point, seed])},
                "test": {"accuracy": float(np.mean(predictions == self.labels))},
                "predictions": pack(predictions),
            }

        return {**look("plain"), "averaged": {name: look("averaged") for name in ("swa", "ema")}, "diverged": False}

    def study(self, plan: Plan, rng: np.random.Generator, tuned_alike: bool = False) -> dict[str, dict[str, Any]]:
        """Records of a study in which no arm differs from another.

        Args:
            plan: Of the study.
            rng: Draws the seeds.
            tuned_alike: Let all arms choose the same point, by the tuning runs of `base`.
        """
        seeds = {arm.name: rng.permutation(self.seeds) for arm in plan.arms}
        tuning = len(plan.tuning_seeds)
        records = {}
        for run in plan.tuning_runs():
            place = plan.tuning_seeds.index(run.seed)
            records[run.key] = self.records[run.point][seeds["base" if tuned_alike else run.arm][place]]
        for run in plan.final_runs(choose(plan, records).points):
            place = tuning + plan.final_seeds.index(run.seed)
            records[run.key] = self.records[run.point][seeds[run.arm][place]]
        return records

    def improved(self, record: dict[str, Any], effect: float, rng: np.random.Generator) -> dict[str, Any]:
        """The record with so many more points on the test: random wrong examples become right."""
        predictions = unpack(record["predictions"]).copy()
        wrong = rng.permutation(np.flatnonzero(predictions != self.labels))
        more = effect / 100 * len(self.labels)
        count = int(more) + (rng.random() < more - int(more))
        predictions[wrong[:count]] = self.labels[wrong[:count]]
        return {
            **record,
            "test": {"accuracy": float(np.mean(predictions == self.labels))},
            "predictions": pack(predictions),
        }


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank()


def verdict_of(plan: Plan, records: dict[str, Any], labels: np.ndarray) -> str:
    outcomes = collect(plan, choose(plan, records), records)
    pairs, _, margin = pairs_of(plan, outcomes, labels)
    return decide(pairs, margin)["sam"].verdict


def test_base_against_base_is_no_discovery(bank):
    """The whole rule: three base arms, tuning included."""
    plan, rng = a_plan("sam", trials=bank.points), np.random.default_rng(0)
    verdicts = [verdict_of(plan, bank.study(plan, rng), bank.labels) for _ in range(STUDIES)]
    shares = {verdict: verdicts.count(verdict) / STUDIES for verdict in sorted(set(verdicts))}
    print(shares)
    assert shares.get("helps", 0) + shares.get("hurts", 0) <= ALLOWED


@pytest.mark.parametrize(("tuned_alike", "least"), [(True, 0.7), (False, 0.6)])
def test_an_effect_of_the_promised_size_is_found_as_often_as_promised(bank, tuned_alike, least):
    """The promise is for the settings that were chosen; that some arms choose better ones takes a little from it."""
    plan, rng = a_plan("sam", trials=bank.points), np.random.default_rng(1)
    promised = []
    for _ in range(20):
        records = bank.study(plan, rng, tuned_alike)
        outcomes = collect(plan, choose(plan, records), records)
        promised.append(detectable(pairs_of(plan, outcomes, bank.labels)[0]["sam"], 1))
    effect = float(np.mean(promised))
    found = 0
    for _ in range(POWERED):
        records = bank.study(plan, rng, tuned_alike)
        for key, record in list(records.items()):
            if key.startswith(f"{FINAL}/sam/"):
                records[key] = bank.improved(record, effect, rng)
        found += verdict_of(plan, records, bank.labels) == "helps"
    print(effect, found / POWERED)
    assert least <= found / POWERED <= 0.9
