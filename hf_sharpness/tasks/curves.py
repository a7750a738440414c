"""The picture of a run: losses, sharpness and evaluation metrics over optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .metrics import scores

_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#2563a8", "#d9730d", "#2e8b57", "#7b4ba3", "#6b7280"
_LOSSES = (
    ("loss", "training loss  L(w)", _BLUE, "-"),
    ("perturbed_loss", "perturbed loss  L(w + δ)", _ORANGE, "-"),
    ("eval_loss", "evaluation loss", _GREEN, "o-"),
)


def series(log_history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of every log entry that carries `key`."""
    rows = [(entry["step"], entry[key]) for entry in log_history if key in entry and "step" in entry]
    return [step for step, _ in rows], [value for _, value in rows]


def plot_curves(
    log_history: list[dict[str, Any]],
    path: str | Path,
    title: str,
    measured: Sequence[str] = (),
    test: Mapping[str, float] | None = None,
) -> Path:
    """Draw `log_history` (of `trainer.state`) to the PNG file `path` and return the path.

    One panel for the losses; one for the sharpness and for each further series that the method measures, where they
    were logged; one for each evaluation metric, with the test score as a line.

    Args:
        log_history: The entries of the training.
        path: The file.
        title: What stands above the picture.
        measured: Names of the method's own series. Default: none.
        test: Metrics of the test split by name. Default None: none are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    evaluated = dict.fromkeys(name for entry in log_history for name in scores(entry, "eval") if name != "loss")
    panels = [
        ("cross-entropy loss", _LOSSES, None),
        ("sharpness\nL(w + δ) − L(w)", (("sharpness", "sharpness", _PURPLE, "-"),), None),
        *((name.replace("_", " "), ((name, name, _GREY, "-"),), None) for name in measured),
        *((name.replace("_", " "), ((f"eval_{name}", "evaluation", _GREEN, "o-"),), name) for name in evaluated),
    ]
    drawn = []
    for label, lines, metric in panels:
        present = [(*series(log_history, key), name, color, style) for key, name, color, style in lines]
        present = [line for line in present if line[0]]
        if present:
            drawn.append((label, present, metric))

    figure = Figure(figsize=(8, 1.1 + 2.1 * max(len(drawn), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    axes = figure.subplots(max(len(drawn), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, curves, metric) in zip(axes, drawn, strict=False):
        for steps, values, name, color, style in curves:
            axis.plot(steps, values, style, color=color, label=name, linewidth=1.6, markersize=3.5)
        if test is not None and metric is not None and metric in test:
            axis.axhline(test[metric], color=_GREY, linestyle="--", linewidth=1.2, label=f"test: {test[metric]:.4f}")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(axis.get_lines()) > 1:
            axis.legend(frameon=False, fontsize=9)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(axes)
    figure.savefig(path, dpi=150)
    return Path(path)
