"""Tables and the picture of what was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .timing import Timed
from .traffic import LEAST, Memory


def where(device: torch.device) -> str:
    """Date, device and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, one thread"
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "accelerate"))
    return f"{datetime.date.today()}, {name}, {versions}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times_table(timed: Mapping[str, Timed], floors: Mapping[str, str]) -> str:
    """Time of each arm, as a ratio to its floor."""
    rows = []
    for name, taken in timed.items():
        low, high = taken.spread
        ratio = f"{taken.ratio:.3f} ({low:.3f} - {high:.3f})" if taken.ratios else ""
        least = min(taken.seconds) / min(timed[floors[name]].seconds) if floors[name] else 0
        milliseconds = 1e3 * sorted(taken.seconds)[len(taken.seconds) // 2]
        pages = f"{statistics.median(taken.pages):,.0f}"
        rows.append([name, f"{milliseconds:.1f}", ratio, f"{least:.3f}" if least else "", pages])
    of_floor = "of its floor: median of rounds (quartiles)"
    return table(["step", "ms, median", of_floor, "fastest step of fastest floor", "fresh pages of memory"], rows)


def memory_table(memory: Mapping[str, Memory], base: Memory, floors: Mapping[str, Memory]) -> str:
    """Bytes in multiples of the trainable weights, beyond what the floor (for what stays: the base) has."""
    rows = []
    for name, found in memory.items():
        unit, floor = found.unit, floors[name]
        least = next(
            (f"{units} ({words})" for key, (words, units) in LEAST.items() if f" {name}".endswith(f" {key}")), ""
        )
        rows.append(
            [
                name,
                f"{(found.traffic - floor.traffic) / unit:.1f}",
                least,
                f"{(found.peak - floor.peak) / unit:.2f}",
                f"{(found.persistent - base.persistent) / unit:.2f}",
                f"{(found.checkpoint - base.checkpoint) / unit:.3f}",
            ]
        )
    header = ["step", "read and written", "the least of it", "peak", "between steps", "in a checkpoint"]
    return table(header, rows)


def picture(path: Path, panels: Sequence[tuple[str, str, Mapping[str, Mapping[Any, float]]]]) -> None:
    """Ratios to the floor against what was varied.

    Args:
        path: of the file.
        panels: of each a title, the name of the horizontal axis, and by method the ratio by what was varied.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (title, label, series) in zip(axes[0], panels, strict=True):
        for name, points in series.items():
            axis.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(title=title, xlabel=label, xscale="log")
        axis.set_xticks(list(next(iter(series.values()))), [f"{x:g}" for x in next(iter(series.values()))])
        axis.minorticks_off()
    axes[0][0].set_ylabel("time of a step / floor")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
