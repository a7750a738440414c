"""Does a measure of flatness go with what a model is good for? Rank correlations over the final runs of studies.

python scripts/sharpness_and_gap.py FOLDER ...      # folders with a results.json of `hf-sharpness compare`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

MEASURES = ("sharpness", "adaptive_sharpness", "gradient_norm", "weight_norm", "train_loss")


def final_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs that have all measures."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    metric = content["plan"]["metric"]
    found = []
    for run in content["runs"]:
        measures = run.get("measures") or {}
        if run["stage"] == "final" and all(measures.get(name) is not None for name in MEASURES):
            found.append({**measures, "metric": run["test"][metric], "arm": run["arm"]})
    return found


def correlation(
    runs: list[dict[str, Any]], measure: str, outcome: str, draws: int = 2000
) -> tuple[float, float, float]:
    """Rank correlation (Spearman), and its 95 % interval by resampling arms: runs of one arm are not independent."""
    random = np.random.default_rng(0)
    arms = sorted({run["arm"] for run in runs})
    values = {arm: np.array([[run[measure], run[outcome]] for run in runs if run["arm"] == arm]) for arm in arms}

    def of(chosen: list[str]) -> float:
        pairs = np.concatenate([values[arm] for arm in chosen])
        return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)

    resampled = [of(list(random.choice(arms, len(arms)))) for _ in range(draws)]
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return of(arms), float(low), float(high)


def table(folders: list[Path]) -> str:
    """A row for each measure and study."""
    lines = ["| study | runs | measure | with the metric | with the generalisation gap |", "| --- " * 5 + "|"]
    for folder in folders:
        runs = final_runs(folder)
        for measure in MEASURES:
            cells = ["{:+.2f} ({:+.2f} .. {:+.2f})".format(*correlation(runs, measure, o)) for o in _OUTCOMES]
            lines.append(f"| {folder.name} | {len(runs)} | {measure.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


_OUTCOMES = ("metric", "generalization_gap")

if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    print(table([Path(name) for name in sys.argv[1:]]))
