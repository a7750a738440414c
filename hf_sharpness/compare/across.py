"""Several studies in one table: every task's verdicts, and how often and how far an arm is ahead across tasks.

Interquartile mean and probability of improvement are rliable's (arXiv 2108.13264); their intervals resample the seeds
of every task by themselves (stratified), by scipy's bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rliable import metrics  # `rliable.library` would import an `arch` that does not run with pandas 3
from scipy import stats

from . import statistics
from .judge import unit_of
from .results import Study
from .tables import arm_title, table

_RESAMPLES = 1_000


def markdown(studies: Sequence[Study]) -> str:
    """One table of all studies, and one across tasks for the arms that all of them have."""
    rows = []
    for study in studies:
        for item in study.judgements:
            gains = ", ".join(f"{item.unit.text(pair.mean)} over {pair.base}" for pair in item.pairs)
            p = f"{item.decision.p:.3f}" if study.plan.tuned else ""
            rows.append([study.plan.name, arm_title(study, item.arm), item.decision.verdict, gains, p])
    head = ["task", "arm", "verdict", "gains", "p (Holm within the task)"]
    parts = ["# Across tasks", table(head, rows)]
    shared = shared_arms(studies)
    if len(studies) > 1 and shared:
        lines = [[name, *across(studies, name)] for name in shared]
        parts.append("## Over all tasks, against the base optimizer at the same number of steps at most")
        parts.append(table(["arm", "interquartile mean of the gain", "probability of improvement"], lines))
        parts.append(
            f"{len(studies)} tasks, gains in points or in the metric's own unit; 95 % intervals resample the seeds of "
            "every task. They speak of these tasks, not of tasks at large."
        )
    parts.append("## Signatures\n\n" + "\n".join(f"* `{study.signature}`" for study in studies))
    return "\n\n".join(parts) + "\n"


def shared_arms(studies: Sequence[Study]) -> list[str]:
    """The sharpness-aware arms of every study, by name, whose runs are all finite numbers."""
    names = [arm.name for arm in studies[0].plan.sharpness_arms]
    return [
        name
        for name in names
        if all(
            name in study.outcomes and study.outcomes[name].complete and study.outcomes["base"].complete
            for study in studies
        )
    ]


def across(studies: Sequence[Study], arm: str) -> tuple[str, str]:
    """The interquartile mean of the gains over `base`, and the probability that a run of the arm is the better one."""
    own, base = [], []
    for study in studies:
        factor = unit_of(study.plan, study.outcomes).factor * (1 if study.plan.greater_is_better else -1)
        own.append(factor * study.outcomes[arm].values)
        base.append(factor * study.outcomes["base"].values)
    gains = [a - b for a, b in zip(own, base, strict=True)]
    mean = _estimate(gains, lambda *tasks: float(metrics.aggregate_iqm(np.concatenate(tasks))))
    chance = _estimate([*own, *base], lambda *tasks: _improvement(tasks[: len(own)], tasks[len(own) :]))
    return (
        f"{mean[0]:+.2f} ({mean[1]:+.2f} .. {mean[2]:+.2f})",
        f"{chance[0]:.2f} ({chance[1]:.2f} .. {chance[2]:.2f})",
    )


def _improvement(own: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> float:
    """rliable's, task by task: tasks may have different numbers of seeds."""
    pairs = zip(own, base, strict=True)
    return float(np.mean([metrics.probability_of_improvement(a[:, None], b[:, None]) for a, b in pairs]))


def _estimate(samples: Sequence[np.ndarray], statistic: Callable[..., float]) -> tuple[float, float, float]:
    result = stats.bootstrap(
        tuple(samples),
        statistic,
        paired=False,
        vectorized=False,
        n_resamples=_RESAMPLES,
        confidence_level=1 - statistics.LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = result.confidence_interval
    return statistic(*samples), float(interval.low), float(interval.high)
