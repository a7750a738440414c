"""XSAM's searches on recorded curves: does the coarse one find the grid's alpha, and how fast does alpha get old?

python scripts/xsam_curves.py record CURVES.json RECIPE [--flag value ...]   # train, and keep the grid's losses
python scripts/xsam_curves.py judge CURVES.json ...                          # compare the searches on them
python scripts/xsam_curves.py draw PICTURE.png CURVES.json ...               # alpha over the training, and its age

Recording trains with the exhaustive grid and a search every 10 steps (--xsam_refresh N: another number).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from hf_sharpness.methods import alpha_search


def record(path: Path, recipe: str, flags: list[str]) -> None:
    """Train as the recipe says, with optim xsam, and write the losses of every search's grid."""
    from hf_sharpness.cli import main

    curves: list[list[float]] = []
    grid = alpha_search.grid

    def keeping(points: int, losses_at: Any) -> Any:
        losses = grid(points, losses_at)
        curves.append([losses[index] for index in range(points)])
        return losses

    alpha_search.SEARCHES["grid"] = keeping
    settings = {"optim": "xsam", "xsam_search": "grid", "xsam_refresh": "10", "sam_check": "off"}
    given = {flag.removeprefix("--") for flag in flags if flag.startswith("--")}
    chosen = [word for name, value in settings.items() if name not in given for word in (f"--{name}", value)]
    try:
        main(["train", recipe, *chosen, *flags])
    finally:
        path.write_text(json.dumps({"recipe": " ".join([recipe, *flags]), "curves": curves}))


def judge(path: Path) -> str:
    """One line on the searches of a file of curves."""
    recorded = json.loads(path.read_text())
    hits, near, probes, costs = 0, 0, [], []
    for losses in recorded["curves"]:
        asked: list[int] = []

        def losses_at(indices: list[int], losses: Any = losses, asked: Any = asked) -> list[float]:
            asked += indices
            return [losses[index] for index in indices]

        exhaustive = alpha_search.chosen(dict(enumerate(losses)), torch.float32)
        found = alpha_search.chosen(alpha_search.coarse(len(losses), losses_at), torch.float32)
        probes.append(len(asked))
        hits += found == exhaustive
        near += abs(found - exhaustive) <= 1
        span = max(losses) - min(losses)
        costs.append((losses[exhaustive] - losses[found]) / span if span else 0.0)
    number = len(probes)
    return (
        f"{recorded['recipe']}: {number} searches; the grid's alpha in {hits / number:.1%}, at most a point beside it "
        f"in {near / number:.1%}; {sum(probes) / number:.2f} probes on average, at most {max(probes)}; the highest "
        f"loss missed by {sum(costs) / number:.2%} of the curve's span on average, by at most {max(costs):.2%}"
    )


def alphas(recorded: dict[str, Any]) -> list[float]:
    """The grid's alpha at every search, over a grid from 0 to 2."""
    found = [alpha_search.chosen(dict(enumerate(losses)), torch.float32) for losses in recorded["curves"]]
    return [2.0 * index / (len(losses) - 1) for index, losses in zip(found, recorded["curves"], strict=True)]


def aged(series: list[float], searches: int) -> float:
    """Mean of |alpha in use - alpha of the step| if so many searches, evenly spaced, serve the whole training."""
    spacing = max(1, round(len(series) / searches))
    used = [series[index - index % spacing] for index in range(len(series))]
    return sum(abs(a - b) for a, b in zip(series, used, strict=True)) / len(series)


def draw(picture: Path, paths: list[Path]) -> str:
    """Draw alpha over the training; return a table of how far it is off with fewer searches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    counts = (1, 3, 5, 10, 20)
    lines = [f"| training | alpha by thirds | {' | '.join(f'{n} searches' for n in counts)} |", "| --- " * 7 + "|"]
    for path in paths:
        series = alphas(json.loads(path.read_text()))
        axis.plot([i / len(series) for i in range(len(series))], series, marker=".", label=path.stem)
        third = len(series) // 3
        thirds = (series[:third], series[third : 2 * third], series[2 * third :])
        means = ", ".join(f"{sum(part) / len(part):.2f}" for part in thirds)
        lines.append(f"| {path.stem} | {means} | {' | '.join(f'{aged(series, n):.2f}' for n in counts)} |")
    axis.set_xlabel("share of the training")
    axis.set_ylabel("alpha*, on a grid from 0 to 2")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figure.savefig(picture, dpi=120)
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", "judge", "draw"):
        raise SystemExit(__doc__)
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    elif sys.argv[1] == "draw":
        print(draw(Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))
    else:
        for name in sys.argv[2:]:
            print(judge(Path(name)))
