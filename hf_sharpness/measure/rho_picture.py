"""`rho.png`: what a range test saw over rho, in SAM's and in ASAM's metric, and where steps are sharpness-aware."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .rho_report import METRICS, looks_of, ranges
from .rho_rules import UP_THE_SLOPE, curve

_BEFORE, _AFTER, _RANGE = "#9ca3af", "#d9730d", "#2563a8"


def draw(record: dict[str, Any], path: Path) -> Path:
    """Draw a judged record to a PNG file and return its path; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2, sharex=True)
    found = ranges(record)
    for column, (adaptive, title) in enumerate(METRICS.items()):
        sharpness, loss, angle = axes[:, column]
        for when, color in (("before", _BEFORE), ("after", _AFTER)):
            looks = looks_of(record, when, adaptive)
            _curves(sharpness, loss, angle, looks, when, color)
        sharpness.set(xscale="log", yscale="log", ylabel="sharpness")
        loss.set(yscale="log", ylabel="loss at the perturbed point")
        for formatter in (loss.yaxis.set_major_formatter, loss.yaxis.set_minor_formatter):
            formatter(_plain)
        angle.set(ylim=(-1.05, 1.05), ylabel="cosine of g and g_s", xlabel="rho")
        shown = [item for item in found if item.adaptive == adaptive]
        range_ = shown[0]
        if range_.is_one:
            words = f"{range_.form} acts from {range_.low:.2g} to {range_.high:.2g}; stopped: {range_.high_reason}"
        else:
            words = f"no range: {range_.why_not}"
        sharpness.set_title("\n".join([title, *textwrap.wrap(words, 76)]), fontsize=9)
        for axis in (sharpness, loss, angle):
            if range_.is_one:
                axis.axvspan(range_.low, range_.high, color=_RANGE, alpha=0.12, linewidth=0)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        for height, item in zip(np.linspace(-0.89, -0.55, len(shown))[::-1], shown, strict=True):
            _bar(angle, item, float(height))
        sharpness.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(
        f"{record['name']}: range test on {record['batches']} batches (thin) and their median (thick), "
        f"before and after {record['warm_up']} plain steps",
        fontsize=11,
        fontweight="bold",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _curves(sharpness: Any, loss: Any, angle: Any, looks: Sequence[dict[str, Any]], when: str, color: str) -> None:
    rho = np.array([point["rho"] for point in looks[0]["radii"]])
    losses = np.array([[point["loss"] for point in look["radii"]] for look in looks], dtype=float)
    rises = losses - np.array([[look["loss"]] for look in looks])
    cosines = np.array([curve(look, UP_THE_SLOPE).cosine for look in looks])
    for axis, lines in ((sharpness, _positive(rises)), (loss, _positive(losses)), (angle, cosines)):
        for line in lines:
            axis.plot(rho, line, color=color, linewidth=0.6, alpha=0.45)
    slope = float(np.median([look["slope"] for look in looks]))
    sharpness.plot(rho, rho * slope, color=color, linewidth=1, linestyle=":", label=f"{when}: predicted, rho x slope")
    for axis, lines in ((sharpness, rises), (loss, losses)):
        axis.plot(rho, _positive(np.median(lines, axis=0)), color=color, linewidth=2, label=when)
    angle.plot(rho, np.median(cosines, axis=0), color=color, linewidth=2, label=when)
    loss.axhline(float(np.median([look["loss"] for look in looks])), color=color, linewidth=0.8, linestyle="--")


def _plain(value: float, position: int) -> str:
    """A tick of a logarithmic axis: 1, 2 and 5 times a power of ten."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def _positive(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: what is not above zero is not drawn."""
    return np.where(values > 0, values, np.nan)


def _bar(axis: Any, found: Any, height: float) -> None:
    """A method's range as a bar at the foot of the picture."""
    name = found.form.partition(",")[0]
    if found.is_one:
        axis.plot([found.low, found.high], [height, height], color=_RANGE, linewidth=3, solid_capstyle="butt")
    words = name if found.is_one else f"{name}: no range"
    axis.text(0.01, height, words, transform=axis.get_yaxis_transform(), fontsize=7.5, va="center")
