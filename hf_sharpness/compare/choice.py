"""The settings that tuning chooses, on validation data: a point for every arm, and whose average an averaged arm is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arms import AVERAGES
from .plan import TUNING, Plan, Run

Records = Mapping[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What tuning found.

    Args:
        points: Arm -> the number of its point.
        averages: Averaged arm -> the base arm whose runs it is read off, and the variant (`swa` or `ema`).
        scores: Arm -> the mean validation score of each point (None: a run diverged). An averaged arm has one entry
            for each candidate instead.
    """

    points: dict[str, int]
    averages: dict[str, tuple[str, str]]
    scores: dict[str, list[float | None]]

    def variants(self, arm: str) -> tuple[str, ...]:
        """The averages that final runs of a base arm are to keep."""
        return tuple(variant for variant in AVERAGES if (arm, variant) in self.averages.values())


def choose(plan: Plan, records: Records) -> Choice:
    """Choose by the mean validation score over the tuning seeds; the first of equals wins."""
    if not plan.tuned:
        return _untuned(plan)
    sign = 1.0 if plan.greater_is_better else -1.0
    scores: dict[str, list[float | None]] = {}
    points: dict[str, int] = {}
    for arm in plan.arms:
        if arm.runs:
            scores[arm.name] = [
                _mean([_record(records, arm.name, point, seed)["eval"] for seed in plan.tuning_seeds], plan.metric)
                for point in range(len(plan.points))
            ]
            points[arm.name] = _best(scores[arm.name], sign)
    averages = {}
    for arm in plan.arms:
        if arm.kind == "averaged":
            candidates = [(base, variant) for base in arm.bases for variant in AVERAGES]
            scores[arm.name] = [
                _mean(
                    [
                        _record(records, base, points[base], seed)["averaged"].get(variant, {}).get("eval", {})
                        for seed in plan.tuning_seeds
                    ],
                    plan.metric,
                )
                for base, variant in candidates
            ]
            averages[arm.name] = candidates[_best(scores[arm.name], sign)]
            points[arm.name] = points[averages[arm.name][0]]
    return Choice(points, averages, scores)


def _untuned(plan: Plan) -> Choice:
    """The one point for every arm, and SWA over the longest base arm's runs."""
    averages = {arm.name: (arm.bases[-1], AVERAGES[0]) for arm in plan.arms if arm.kind == "averaged"}
    return Choice({arm.name: 0 for arm in plan.arms}, averages, {arm.name: [] for arm in plan.arms})


def _record(records: Records, arm: str, point: int, seed: int) -> dict[str, Any]:
    return records[Run(TUNING, arm, point, seed).key]


def _mean(metrics: list[dict[str, Any]], metric: str) -> float | None:
    values = [value for entry in metrics if (value := entry.get(metric)) is not None]
    return float(np.mean(values)) if len(values) == len(metrics) else None


def _best(scores: list[float | None], sign: float) -> int:
    return int(np.argmax([-np.inf if score is None else sign * score for score in scores]))
