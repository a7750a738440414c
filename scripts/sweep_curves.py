"""Curves of sweeps: what becomes of accuracy, flatness and the generalisation gap along rho and along gamma.

python scripts/sweep_curves.py FOLDER ...                      # folders with a results.json of a sweep
python scripts/sweep_curves.py FOLDER ... --picture FILE.png   # and the picture
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = ("nll", "train_loss", "generalization_gap", "sharpness")
_OTHERS = {
    "sam_start",
    "sam_fraction",
    "sam_target_modules",
    "xsam_refresh",
    "xsam_alpha",
    "xsam_alpha_max",
}
_COLUMNS = 3
HEADER = ("arm", "accuracy", "test loss", "training loss", "gap", "sharpness", "weighted sharpness")


class Point:
    """The final runs of one arm.

    Args:
        arm: of the plan.
        runs: its runs.
        metric: the primary one.
    """

    def __init__(self, arm: dict[str, Any], runs: list[dict[str, Any]], metric: str) -> None:
        self.name, self.arguments = arm["name"], arm["arguments"]
        self.values = 100 * np.array([run["test"][metric] for run in runs])
        of = [run["measures"] for run in runs]
        self.measures = {name: _mean([measures.get(name) for measures in of]) for name in MEASURES}

    @property
    def series(self) -> str:
        """What is drawn as one line: all points of the same method, mode and number of ascents."""
        mode, steps = self.arguments.get("wsam_mode"), self.arguments.get("sam_steps")
        return " ".join([self.arguments["optim"], *([mode] if mode else []), *([f"k = {steps}"] if steps else [])])

    @property
    def weight(self) -> float | None:
        """Of the sharpness in WSAM's objective (arXiv 2305.15817); SAM's is 1."""
        gamma = 0.5 if self.arguments["optim"] == "sam" else self.arguments.get("wsam_gamma")
        return None if gamma is None else gamma / (1 - gamma)


def points_of(folder: Path) -> list[Point]:
    """The base arm and the sharpness-aware ones of a study."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    runs = defaultdict(list)
    for run in content["runs"]:
        if run["stage"] == "final":
            runs[run["arm"]].append(run)
    arms = [arm for arm in content["plan"]["arms"] if arm["kind"] != "averaged"]
    return [Point(arm, runs[arm["name"]], content["plan"]["metric"]) for arm in arms if runs[arm["name"]]]


def table(folder: Path) -> str:
    """A row for each arm: means over its runs, the accuracy with its standard deviation."""
    lines = [f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|"]
    for point in points_of(folder):
        weight, sharpness = point.weight, point.measures["sharpness"]
        cells = [point.name, f"{point.values.mean():.1f} ± {point.values.std(ddof=1):.1f}"]
        cells += [_number(point.measures[name]) for name in MEASURES]
        cells.append("" if weight is None or sharpness is None else _number(weight * sharpness))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(folders: list[Path], path: Path) -> None:
    """Accuracy along rho and gamma, a panel for each study that varies it; the grey band is the base optimizer's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(folder, argument) for argument in ("sam_rho", "wsam_gamma") for folder in folders]
    panels = [(folder, argument) for folder, argument in panels if _lines(points_of(folder), argument)]
    rows = math.ceil(len(panels) / _COLUMNS)
    size = (3.4 * min(len(panels), _COLUMNS), 3.1 * rows)
    figure, axes = plt.subplots(rows, min(len(panels), _COLUMNS), figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (folder, argument) in zip(axes.flat, panels, strict=False):
        points = points_of(folder)
        base = next(point.values for point in points if point.name == "base")
        ax.axhspan(base.min(), base.max(), color="0.88", zorder=0)
        ax.axhline(base.mean(), color="0.5", lw=1, zorder=1)
        lines = _lines(points, argument)
        for name, line in lines.items():
            line.sort(key=lambda point: point.arguments[argument])
            along = [point.arguments[argument] for point in line]
            means = np.array([point.values.mean() for point in line])
            lowest, highest = (np.array([of(point.values) for point in line]) for of in (np.min, np.max))
            around = [means - lowest, highest - means]
            ax.errorbar(along, means, around, marker="o", ms=4, lw=1.4, capsize=2, label=name)
        if argument == "sam_rho":
            radii = sorted({p.arguments[argument] for line in lines.values() for p in line})
            ax.set_xscale("log")
            ax.set_xticks(radii, [f"{rho:g}" for rho in radii], fontsize=8)
            ax.minorticks_off()
        ax.set_xlabel(argument.partition("_")[2])
        ax.set_ylabel("test accuracy, %")
        ax.set_title(folder.name, fontsize=9)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _lines(points: list[Point], argument: str) -> dict[str, list[Point]]:
    """Series -> its points, where they differ in this argument and in no other."""
    found = defaultdict(list)
    for point in points:
        if argument in point.arguments and not _OTHERS & set(point.arguments):
            found[point.series].append(point)
    return {name: line for name, line in found.items() if len({point.arguments[argument] for point in line}) > 1}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if abs(value) < 1 else f"{value:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    for folder in asked.folders:
        print(f"## {folder.name}\n\n{table(folder)}\n")
    if asked.picture:
        picture(asked.folders, asked.picture)
