"""From the outcomes of a study to its verdicts, in the unit people speak of, and the sentences that say them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from ..methods.registry import radii
from ..tasks.metrics import build_compute_metrics
from . import statistics
from .arms import optimizer_name, short
from .outcomes import Outcome
from .plan import Plan
from .statistics import Interval
from .verdict import DIVERGED, EQUIVALENT, HELPS, HURTS, NONE, UNDECIDED, Decision, Pair, decide, detectable

_SLOW_RESAMPLES = 1_000
_COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@dataclasses.dataclass(frozen=True)
class Unit:
    """The unit of gains: points (hundredths) for a metric from -1 to 1, else the metric's own.

    Args:
        factor: What a value is multiplied with.
        word: Follows a number; empty for a metric's own unit.
        decimals: To show.
    """

    factor: float
    word: str
    decimals: int

    def text(self, value: float, signed: bool = True) -> str:
        """A gain without its unit."""
        if not np.isfinite(value):
            return "unbounded"
        return f"{value:{'+' if signed else ''}.{self.decimals}f}"

    def interval(self, interval: Interval) -> str:
        """An interval."""
        if not np.all(np.isfinite(interval)):
            return "no interval"
        return f"{self.text(interval[0])} .. {self.text(interval[1])}"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict on an arm with all that supports it.

    Args:
        arm: Its name.
        decision: The verdict.
        pairs: Gains over every base arm, in `unit`.
        detectable: The gain that would have been found in four cases of five.
        unit: Of the gains.
        sentence: The verdict in words.
    """

    arm: str
    decision: Decision
    pairs: list[Pair]
    detectable: float
    unit: Unit
    sentence: str


def judge(plan: Plan, outcomes: Mapping[str, Outcome], labels: np.ndarray | None) -> list[Judgement]:
    """Judge every sharpness-aware arm.

    Args:
        plan: Of the study.
        outcomes: Of all arms.
        labels: [test examples] class ids; None where the runs do not tell.
    """
    complete, unit, margin = pairs_of(plan, outcomes, labels)
    decisions = decide(complete, margin) if plan.tuned else {name: Decision(NONE, float("nan")) for name in complete}
    found = []
    for arm in plan.sharpness_arms:
        pairs = complete.get(arm.name, [])
        decision = decisions.get(arm.name, Decision(DIVERGED, 1.0))
        limit = detectable(pairs, len(plan.sharpness_arms)) if pairs and plan.tuned else float("inf")
        sentence = _sentence(plan, arm.name, outcomes, decision, pairs, limit, unit, margin)
        found.append(Judgement(arm.name, decision, pairs, limit, unit, sentence))
    return found


def pairs_of(
    plan: Plan, outcomes: Mapping[str, Outcome], labels: np.ndarray | None
) -> tuple[dict[str, list[Pair]], Unit, float]:
    """The gains of every sharpness-aware arm over its base arms, their unit, and the margin of equivalence in it.

    An arm is left out where a score of it, or of a base arm of it, is no finite number.
    """
    unit = unit_of(plan, outcomes)
    complete: dict[str, list[Pair]] = {}
    for arm in plan.sharpness_arms:
        involved = [outcomes[name] for name in (arm.name, *arm.bases)]
        if all(outcome.complete for outcome in involved):
            complete[arm.name] = [_pair(plan, involved[0], base, labels, unit) for base in involved[1:]]
    return complete, unit, margin_of(plan, outcomes, unit)


def unit_of(plan: Plan, outcomes: Mapping[str, Outcome]) -> Unit:
    """Points where the metric is no loss and every score lies between -1 and 1."""
    scores = np.concatenate([outcome.values for outcome in outcomes.values()])
    scores = scores[np.isfinite(scores)]
    if plan.greater_is_better and len(scores) and np.all(np.abs(scores) <= 1):
        return Unit(100.0, "points", 1)
    return Unit(1.0, "", 4)


def margin_of(plan: Plan, outcomes: Mapping[str, Outcome], unit: Unit) -> float:
    """The margin of equivalence in the unit of the gains."""
    if plan.margin is not None:
        return plan.margin
    if unit.word:
        return 1.0
    base = outcomes["base"].values
    return 0.01 * abs(float(np.nanmean(base))) if np.any(np.isfinite(base)) else 0.0


def _pair(plan: Plan, arm: Outcome, base: Outcome, labels: np.ndarray | None, unit: Unit) -> Pair:
    factor = unit.factor * (1.0 if plan.greater_is_better else -1.0)
    return Pair(base.arm, factor * (arm.values - base.values), _resampled(plan, arm, base, labels, factor))


def _resampled(
    plan: Plan, arm: Outcome, base: Outcome, labels: np.ndarray | None, factor: float
) -> Callable[[], Interval] | None:
    if plan.metric == "loss":
        if arm.losses is None or base.losses is None:
            return None
        losses = factor * (arm.losses - base.losses).mean(axis=0)
        return lambda: statistics.example_interval(losses)
    if arm.predictions is None or base.predictions is None or labels is None:
        return None
    if plan.metric == "accuracy":
        right = (arm.predictions == labels).mean(axis=0) - (base.predictions == labels).mean(axis=0)
        return lambda: statistics.example_interval(factor * right)
    return lambda: _metric_interval(plan.metric, arm.predictions, base.predictions, labels, factor)


def _metric_interval(metric: str, arm: Any, base: Any, labels: np.ndarray, factor: float) -> Interval:
    """The same for a metric that is no mean over examples: computed anew on every resample."""
    compute = build_compute_metrics([metric])
    classes = int(max(arm.max(), base.max(), labels.max())) + 1
    scores = np.eye(classes, dtype=np.float32)

    def gain(rows: np.ndarray) -> float:
        rows = rows.astype(np.int64)

        def score(predicted: np.ndarray) -> float:
            return compute(_Prediction(scores[predicted[rows]], labels[rows]))[metric]

        return factor * float(np.mean([score(a) - score(b) for a, b in zip(arm, base, strict=True)]))

    result = stats.bootstrap(
        (np.arange(len(labels)),),
        gain,
        n_resamples=_SLOW_RESAMPLES,
        confidence_level=1 - statistics.LEVEL,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """What a metric of a recipe looks at."""

    predictions: np.ndarray
    label_ids: np.ndarray


def title(outcome: Outcome) -> str:
    """A sharpness-aware arm as people write it: `SAM rho .02`, with the arm's name where it is another."""
    given = outcome.arguments
    method, name = str(given["optim"]), outcome.arm
    lengths = [f" {radius.name} {short(given[argument])}" for argument, radius in radii().items() if argument in given]
    written = method.upper() + "".join(lengths)
    return written if name == method else f"{name} ({written})"


def base_title(plan: Plan, name: str) -> str:
    """A base arm as people write it, seen from an arm that it is a base of."""
    optimizer, arm = optimizer_name(plan.base_optim), plan.arm(name)
    if arm.kind == "averaged":
        return f"averaged {optimizer}"
    return optimizer if arm.cap == 1 else f"{optimizer} at equal passes"


def _sentence(
    plan: Plan,
    arm: str,
    outcomes: Mapping[str, Outcome],
    decision: Decision,
    pairs: list[Pair],
    limit: float,
    unit: Unit,
    margin: float,
) -> str:
    name, seeds = title(outcomes[arm]), len(plan.final_seeds)
    if decision.verdict == DIVERGED:
        bad = [outcomes[other] for other in (arm, *plan.arm(arm).bases) if not outcomes[other].complete]
        counts = ", ".join(f"{item.arm} in {sum(s is None for s in item.scores)} of {seeds}" for item in bad)
        return f"{name}: no verdict, the metric is not a finite number for {counts} final runs"
    word = f" {unit.word}" if unit.word else ""
    passes = outcomes[arm].mean_of("passes") or plan.arm(arm).cost
    first, *rest = pairs
    against = f"over {base_title(plan, first.base)} for {passes:.1f}x the passes"
    others = "".join(f", {unit.text(pair.mean)} over {base_title(plan, pair.base)}" for pair in rest)
    if decision.verdict == NONE:
        return f"{name}: {unit.text(first.mean)}{word} ({unit.interval(first.seed_interval)}) {against}{others}"
    gain = f"{unit.text(first.mean)}{word} ({unit.interval(first.seed_interval)}, p {_p(decision.p)}) {against}{others}"
    if decision.verdict in (HELPS, HURTS):
        return f"{name} {decision.verdict}: {gain}"
    if decision.verdict == EQUIVALENT:
        return f"{name} is equivalent within {unit.text(margin, signed=False)}{word}: {gain}"
    if not np.isfinite(limit):
        needed = statistics.seeds_needed(len(plan.sharpness_arms))
        shown = f"{_count(seeds)} seeds cannot show anything here, {_count(needed)} could"
    else:
        shown = f"{_count(seeds)} seeds would have shown {unit.text(limit, signed=False)}"
    return f"{name} {UNDECIDED}: {gain}{_below_throughout(plan, pairs)}; {shown}"


def _below_throughout(plan: Plan, pairs: list[Pair]) -> str:
    """The base arms that were better with every seed: a count, which no correction over base arms needs to bear."""
    better = [base_title(plan, pair.base) for pair in pairs if np.all(pair.seeds < 0)]
    if not better or len(pairs[0].seeds) < 2:
        return ""
    return f"; below {' and '.join(better)} with every seed"


def _p(p: float) -> str:
    return short(round(p, 3)) if p >= 0.0005 else "< .001"


def _count(number: int) -> str:
    return _COUNTS[number] if number < len(_COUNTS) else str(number)
