"""What was measured, drawn: each function takes the numbers of a picture and writes a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2563a8", "#d9730d", "#2e8b57", "#7b4ba3", "#6b7280"


def draw(name: str, found: Mapping[str, Any], title: str, path: Path) -> None:
    """Draw one picture.

    Args:
        name: Which: `line`, `surface`, `sam`, `cosine` or `path`.
        found: Its numbers, as `measure.json` has them.
        title: What stands above it.
        path: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.6) if name == "sam" else (6.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    _DRAWN[name](figure, found)
    figure.savefig(path, dpi=150)


def _line(figure: Any, found: Mapping[str, Any]) -> None:
    axis = _axis(figure.subplots(), "distance, in units of the filters' norms", "loss")
    for number, losses in enumerate(found["losses"]):
        axis.plot(found["distances"], losses, color=(BLUE, ORANGE, GREEN, PURPLE, GREY)[number % 5], linewidth=1.6)
    axis.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_title(f"{len(found['losses'])} random filter-normalised directions", fontsize=9)


def _surface(figure: Any, found: Mapping[str, Any]) -> None:
    axis = _axis(figure.subplots(), "first direction", "second direction")
    _contours(figure, axis, found["xs"], found["ys"], found["losses"])
    axis.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=6)
    axis.set_title("two random filter-normalised directions", fontsize=9)


def _sam(figure: Any, found: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    _axis(left, "along $g_0$", "along the part of $g_1$ orthogonal to $g_0$")
    _contours(figure, left, found["xs"], found["ys"], found["losses"])
    rho, longest = found["rho"], found["rho_max"]
    arrows = (
        ("$g_0$", (1.0, 0.0), BLUE),
        (f"SAM: $g_1$, {found['angle']:.0f}° from $g_0$", found["g1"], ORANGE),
        (f"XSAM: $v(\\alpha^*)$, $\\alpha^* = {found['alpha']:g}$", found["v"], PURPLE),
    )
    for number, (label, (x, y), color) in enumerate(arrows):
        length = longest * (1.0 - 0.12 * number)  # arrows may lie on each other
        left.annotate(
            "",
            (length * x, length * y),
            (0, 0),
            arrowprops={
                "arrowstyle": "-|>",
                "color": color,
                "linewidth": 2.2 + 1.1 * number,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=5 - number,
        )
        left.plot([], [], color=color, linewidth=2.5, label=label)
    left.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=6, zorder=6, label="$w_0$")
    left.plot(rho, 0, "s", color="white", markeredgecolor=BLUE, markersize=6, zorder=6, label=f"$w_1$, ρ = {rho:g}")
    angles = np.linspace(0, 2 * np.pi, 200)
    left.plot(longest * np.cos(angles), longest * np.sin(angles), color="white", linewidth=0.9, linestyle="--")
    left.set_aspect("equal")
    left.legend(fontsize=7.5, loc="lower left", framealpha=0.85)
    left.set_title(f"the plane of $g_0$ and $g_1$; the circle is ρ_max = {longest:g}", fontsize=9)

    _axis(right, "distance from $w_0$", "loss")
    right.plot(found["radii"], found["along_g0"], color=BLUE, linewidth=1.8, label="along $g_0$")
    right.plot(found["radii"], found["along_g1"], color=ORANGE, linewidth=1.8, label="along $g_1$")
    right.axvline(rho, color=GREY, linewidth=0.8, linestyle=":")
    right.text(rho, right.get_ylim()[1], " ρ", va="top", color=GREY)
    if found["overtakes"] is not None:
        where = f"$g_1$ is the higher from {found['overtakes']:.3g} on"
    else:
        where = "$g_1$ is nowhere the higher to the end"
    right.set_title(f"both from $w_0$; {where}", fontsize=9)
    right.legend(frameon=False)


def _cosine(figure: Any, found: Mapping[str, Any]) -> None:
    axis = _axis(figure.subplots(), "k, steps of ascent", "cosine with the maximum")
    axis.plot(found["steps"], found["of_gradient"], "o-", color=ORANGE, label="$g_k$, which SAM steps along")
    moved = [(k, c) for k, c in zip(found["steps"], found["of_displacement"], strict=True) if c is not None]
    axis.plot(*zip(*moved, strict=True), "s-", color=BLUE, label="$w_k - w_0$")
    axis.set_ylim(top=1.02)
    axis.legend(frameon=False)
    axis.set_title(
        f"maximum within ρ = {found['rho']:g}: loss {found['maximum']:.4g}, the best of {found['starts']} ascents",
        fontsize=9,
    )


def _path(figure: Any, found: Mapping[str, Any]) -> None:
    axis = _axis(figure.subplots(), f"from the model (0) to {found['to']} (1)", "loss")
    for (split, losses), color in zip(found["losses"].items(), (BLUE, ORANGE), strict=False):
        axis.plot(found["positions"], losses, "o-", color=color, markersize=3, linewidth=1.6, label=split)
    for end in (0.0, 1.0):
        axis.axvline(end, color=GREY, linewidth=0.8, linestyle=":")
    axis.legend(frameon=False)
    axis.set_title("straight line between two models", fontsize=9)


_DRAWN = {"line": _line, "surface": _surface, "sam": _sam, "cosine": _cosine, "path": _path}


def _axis(axis: Any, x: str, y: str) -> Any:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _contours(figure: Any, axis: Any, xs: Sequence[float], ys: Sequence[float], losses: Any) -> None:
    grid = np.array(losses, dtype=float)
    axis.grid(False)
    mesh = axis.contourf(xs, ys, grid, levels=24, cmap="viridis")
    axis.contour(xs, ys, grid, levels=12, colors="white", linewidths=0.4, alpha=0.6)
    figure.colorbar(mesh, ax=axis, label="loss")
