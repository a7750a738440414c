"""What a range test says: tables for the terminal, and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from .rho_rules import (
    DISAGREE,
    HILL,
    LEAST_COSINE,
    LEAST_TURN,
    MOST_RISE,
    PEAK,
    SPREAD,
    UP_THE_SLOPE,
    Range,
    candidates,
    curve,
    forms,
    range_of,
)

METRICS = {False: "SAM", True: "ASAM (sam_adaptive)"}
RULES = {
    "lower end": f"the method's gradient differs from the plain one by {LEAST_TURN:g} of its norm",
    "upper end": (
        f"the last rho before the perturbed loss is above {1 + MOST_RISE:g} x the loss, the cosine of the gradients at "
        f"the weights and up the slope is below {LEAST_COSINE:g}, the rise (once above {HILL:g} of the loss) falls "
        f"below {PEAK:g} of its highest, or something is not finite"
    ),
    "no range": (
        "an end is missing, the ends lie the wrong way round, nothing stops the test within the grid, or the upper "
        f"ends of more than {DISAGREE:g} of the batches lie farther than {SPREAD:g} x from the median"
    ),
}


def looks_of(record: dict[str, Any], when: str, adaptive: bool) -> list[dict[str, Any]]:
    """The measured batches of one time and metric."""
    return [look for look in record["looks"] if look["when"] == when and look["adaptive"] == adaptive]


def judged(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what the rules make of it: `ranges` and `candidates`, of the time after the warm-up."""
    found, rows = [], []
    for adaptive in METRICS:
        looks = looks_of(record, "after", adaptive)
        for form in forms():
            found.append(dataclasses.asdict(range_of(looks, form, adaptive)))
        rows += [{**row, "adaptive": adaptive} for row in candidates(looks)]
    return {**record, "rules": RULES, "ranges": found, "candidates": rows}


def ranges(record: dict[str, Any]) -> list[Range]:
    """The ranges of a judged record."""
    names = [field.name for field in dataclasses.fields(Range)]
    return [Range(**{name: entry[name] for name in names}) for entry in record["ranges"]]


def text(record: dict[str, Any]) -> str:
    """Tables, ranges and candidates."""
    lines = [
        f"range test of {record['name']}: {record['base_optim']}, learning rate {record['learning_rate']:g}, batches "
        f"of {record['batch_size']}, {record['batches']} of them before and after {record['warm_up']} plain steps"
    ]
    for adaptive, title in METRICS.items():
        lines += ["", f"{title}, after the warm-up (medians over {record['batches']} batches)"]
        lines += _table(looks_of(record, "after", adaptive))
    lines += ["", "where steps are sharpness-aware (no advice: the best rho was often below, docs/rho.md)"]
    for found in ranges(record):
        name = f"  {'ASAM metric, ' if found.adaptive else ''}{found.form}: "
        if found.is_one:
            lines.append(f"{name}{found.low:.2g} - {found.high:.2g}")
            lines.append(f"      from below: {found.low_reason}; stopped above: {found.high_reason}")
        else:
            lines.append(f"{name}nowhere: {found.why_not}")
    lines += ["", "what other rules would choose (none of them is proven to choose well)"]
    rows = record["candidates"]
    for row in rows[: len(rows) // 2]:
        other = next(r for r in rows if r["rule"] == row["rule"] and r["adaptive"])
        lines.append(f"  {row['rule']:<78} SAM {_short(row['rho']):>8}   ASAM {_short(other['rho']):>8}")
    return "\n".join(lines)


def _table(looks: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"  {'rho':>8} {'sharpness':>10} {'predicted':>10} {'loss there':>10} {'cosine':>7} {'step by':>8}"]
    curves = [curve(look, UP_THE_SLOPE) for look in looks]
    for index, rho in enumerate(curves[0].rho):
        points = [look["radii"][index] for look in looks]
        sharpness = np.median([point["loss"] - look["loss"] for point, look in zip(points, looks, strict=True)])
        predicted = np.median([rho * look["slope"] for look in looks])
        loss = np.median([point["loss"] for point in points])
        cosine = np.median([point["cosine"] for point in points])
        turn = np.median([line.turn[index] for line in curves])
        lines.append(
            f"  {rho:>8.2g} {sharpness:>10.3g} {predicted:>10.3g} {loss:>10.3g} {cosine:>7.3f} {100 * turn:>7.1f}%"
        )
    return lines


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
