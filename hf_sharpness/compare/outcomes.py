"""The final runs, arm by arm: what tables, pictures and verdicts are made from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .choice import Choice, Records
from .packing import unpack, unpack_floats
from .plan import FINAL, Plan, Run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The final runs of one arm, one for each seed, in the order of the plan's seeds.

    Args:
        arm: Its name.
        kind: `base`, `averaged` or `sharpness`.
        arguments: The tuned training arguments.
        scores: The primary metric; None where it is no finite number.
        others: Further metrics and measures by name, in the same form.
        predictions: [seeds, test examples] class ids; None where the runs do not tell.
        losses: [seeds, test examples]; None where the primary metric is not the loss.
        runs: The records themselves, of the base arm for an averaged one.
    """

    arm: str
    kind: str
    arguments: dict[str, Any]
    scores: list[float | None]
    others: dict[str, list[float | None]]
    predictions: np.ndarray | None
    losses: np.ndarray | None
    runs: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        """Whether every score is a finite number."""
        return all(score is not None for score in self.scores)

    @property
    def values(self) -> np.ndarray:
        """The scores as numbers; NaN for none."""
        return np.array([np.nan if score is None else score for score in self.scores], dtype=np.float64)

    @property
    def diverged(self) -> int:
        """How many of its runs diverged."""
        return sum(bool(run["diverged"]) for run in self.runs)

    def mean_of(self, field: str) -> float | None:
        """The mean of a number of its records over seeds; None where a record has none."""
        values = [value for run in self.runs if (value := run.get(field)) is not None]
        return float(np.mean(values)) if len(values) == len(self.runs) else None


def collect(plan: Plan, choice: Choice, records: Records) -> dict[str, Outcome]:
    """The outcomes of all arms, in the plan's order, once every final run is there."""
    found = {}
    for arm in plan.arms:
        source, variant = choice.averages.get(arm.name, (arm.name, None))
        runs = [records[Run(FINAL, source, choice.points[arm.name], seed).key] for seed in plan.final_seeds]
        looks = runs if variant is None else [run["averaged"].get(variant) or {} for run in runs]
        judged = [look.get("test") or look.get("eval") or {} for look in looks]
        measures = [look.get("measures") or {} for look in looks]
        told = (plan.metric, "loss") if any(measures) else (plan.metric,)  # the measures have the likelihood
        others = {name: [entry.get(name) for entry in judged] for name in _names(judged) if name not in told}
        others.update({name: [entry.get(name) for entry in measures] for name in _names(measures)})
        arguments = plan.arguments(source, choice.points[arm.name])
        found[arm.name] = Outcome(
            arm.name,
            arm.kind,
            arguments if variant is None else {**arguments, "average": variant, "of": source},
            [entry.get(plan.metric) for entry in judged],
            others,
            _stack(looks, "predictions", unpack),
            _stack(looks, "losses", unpack_floats),
            runs,
        )
    return found


def _names(entries: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry))


def _stack(looks: list[dict[str, Any]], name: str, read: Any) -> np.ndarray | None:
    if any(name not in look for look in looks):
        return None
    return np.stack([read(look[name]) for look in looks])
