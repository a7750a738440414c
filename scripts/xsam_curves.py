"""Does XSAM's coarse search find the alpha of the exhaustive grid, and what does a miss cost? On recorded curves.

python scripts/xsam_curves.py record CURVES.json RECIPE [--flag value ...]   # train, and keep the grid's losses
python scripts/xsam_curves.py judge CURVES.json ...                          # compare the searches on them

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


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", "judge"):
        raise SystemExit(__doc__)
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        for name in sys.argv[2:]:
            print(judge(Path(name)))
