"""`compare.png`: a dot for every seed with the interval of the mean, and the metric against what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import statistics
from .errors import CompareError
from .judge import unit_of
from .results import Study
from .tables import arm_title, setting, total_passes

_COLORS = {"base": "#6b7280", "averaged": "#2563a8", "sharpness": "#d9730d"}
_WORDS = {"base": "base optimizer", "averaged": "averaged weights", "sharpness": "sharpness-aware"}


def draw(study: Study, path: Path) -> Path:
    """Draw the study to a PNG file and return its path.

    Raises:
        CompareError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise CompareError(f"{path} was not drawn: matplotlib is missing; `pip install matplotlib`") from None

    names = list(study.outcomes)
    unit = unit_of(study.plan, study.outcomes)
    figure = Figure(figsize=(12, 1.9 + 0.62 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    seeds, cost = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, name in enumerate(reversed(names)):
        _row(seeds, study, name, row, unit.factor)
    seeds.set_yticks(range(len(names)), [_label(study, name) for name in reversed(names)], fontsize=9)
    seeds.set_ylim(-0.6, len(names) - 0.4)
    label = study.plan.metric.replace("_", " ") + (" (%)" if unit.word else "")
    seeds.set_xlabel(f"{label}; a dot for each seed, mean and 95 % interval")
    base = unit.factor * float(np.nanmean(study.outcomes["base"].values))
    seeds.axvline(base, color=_COLORS["base"], linewidth=0.8, linestyle=":")

    for name in names:
        _point(cost, study, name, unit.factor)
    cost.set_xlabel("passes over a batch in the whole training")
    cost.set_ylabel(label)
    cost.margins(y=0.12)
    cost.set_xlim(0, 1.25 * max(total_passes(study, name) or 1.0 for name in names))
    for axis in (seeds, cost):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=_COLORS[kind], marker="o", linestyle="", label=_WORDS[kind])
        for kind in _COLORS
        if any(outcome.kind == kind for outcome in study.outcomes.values())
    ]
    cost.legend(handles=handles, frameon=False, fontsize=8, loc="best")
    verdicts = ", ".join(f"{item.arm} {item.decision.verdict}" for item in study.judgements)
    figure.suptitle(
        f"{study.plan.name}: {verdicts if study.plan.tuned else 'a sweep, nothing is tuned'}",
        fontsize=11,
        fontweight="bold",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _row(axis: Any, study: Study, name: str, row: int, factor: float) -> None:
    outcome = study.outcomes[name]
    values = factor * outcome.values[np.isfinite(outcome.values)]
    color = _COLORS[outcome.kind]
    # Seeds lie in the same order in every row, so that the eye can pair them.
    heights = row + np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.array([float(row)])
    axis.scatter(values, heights, s=16, color=color, alpha=0.55, linewidths=0)
    if not len(values):
        return
    low, high = statistics.seed_interval(values)
    if np.isfinite(low):
        axis.plot([low, high], [row, row], color=color, linewidth=2)
    axis.plot(values.mean(), row, marker="D", markersize=6, color=color)


def _point(axis: Any, study: Study, name: str, factor: float) -> None:
    outcome, passes = study.outcomes[name], total_passes(study, name)
    values = factor * outcome.values[np.isfinite(outcome.values)]
    if passes is None or not len(values):
        return
    low, high = statistics.seed_interval(values)
    color = _COLORS[outcome.kind]
    if np.isfinite(low):
        axis.plot([passes, passes], [low, high], color=color, linewidth=1.2, alpha=0.7)
    axis.plot(passes, values.mean(), marker="o", color=color, markersize=5)
    axis.annotate(name, (passes, values.mean()), textcoords="offset points", xytext=(6, 3), fontsize=8, color=color)


def _label(study: Study, name: str) -> str:
    return f"{arm_title(study, name)}\n{setting(study.outcomes[name])}"
