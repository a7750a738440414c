"""The picture of a run: losses, sharpness and evaluation scores over optimizer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#2563a8", "#d9730d", "#2e8b57", "#7b4ba3", "#6b7280"


def series(log_history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of every log entry that carries `key`."""
    rows = [(entry["step"], entry[key]) for entry in log_history if key in entry and "step" in entry]
    return [step for step, _ in rows], [value for _, value in rows]


def plot_curves(log_history: list[dict[str, Any]], path: str | Path, title: str) -> Path:
    """Draw `log_history` (of `trainer.state`) to the PNG file `path` and return the path.

    One panel for the losses; one for the sharpness where the run logged it; one for the evaluation accuracy and
    macro-F1 where it was evaluated. XSAM's alpha* and decoupled WSAM's step ratio get a panel of their own.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [
        (
            "cross-entropy loss",
            [
                ("loss", "training loss  L(w)", _BLUE, "-"),
                ("perturbed_loss", "perturbed loss  L(w + δ)", _ORANGE, "-"),
                ("eval_loss", "evaluation loss", _GREEN, "o-"),
            ],
        ),
        ("sharpness\nL(w + δ) − L(w)", [("sharpness", "sharpness", _PURPLE, "-")]),
        ("XSAM  α*", [("xsam_alpha", "α*", _GREY, "-")]),
        ("WSAM term /\nbase step", [("wsam_step_ratio", "norm ratio", _GREY, "-")]),
        (
            "evaluation score",
            [("eval_accuracy", "accuracy", _GREEN, "o-"), ("eval_macro_f1", "macro-F1", _GREY, "s--")],
        ),
    ]
    drawn = []
    for label, lines in panels:
        present = [(*series(log_history, key), name, color, style) for key, name, color, style in lines]
        present = [line for line in present if line[0]]
        if present:
            drawn.append((label, present))

    figure = Figure(figsize=(8, 1.1 + 2.1 * max(len(drawn), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    axes = figure.subplots(max(len(drawn), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, lines) in zip(axes, drawn, strict=False):
        for steps, values, name, color, style in lines:
            # alpha* stays the same from one search to the next
            shape = "steps-pre" if name == "α*" else "default"
            axis.plot(steps, values, style, color=color, label=name, linewidth=1.6, markersize=3.5, drawstyle=shape)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=9)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(axes)
    figure.savefig(path, dpi=150)
    return Path(path)
