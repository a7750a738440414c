"""Does a cheap measure know the best rho? The range test of `hf-sharpness rho` beside the grids of sweeps.

python scripts/rho_rules.py RANGE=SWEEP ...      # a folder with rho.json, and one with a sweep of SAM over rho
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sweep_curves import Point, points_of

from hf_sharpness.measure.rho_rules import candidates, forms, range_of

_BAR = "\\|"
FACTOR = 2.0
"""A rule that is to be relied on lies within this factor of the best rho, whatever the task."""


def grid(folder: Path) -> tuple[Point, list[Point]]:
    """The base arm, and SAM's over rho in rising order."""
    points = points_of(folder)
    arms = [
        p for p in points if p.arguments["optim"] == "sam" and set(p.arguments) <= {"optim", "base_optim", "sam_rho"}
    ]
    return points[0], sorted(arms, key=lambda point: point.arguments["sam_rho"])


def looks(folder: Path) -> list[dict[str, Any]]:
    """What was measured after the warm-up, in SAM's own metric."""
    content = json.loads((folder / "rho.json").read_text(encoding="utf-8"))
    return [look for look in content["looks"] if look["when"] == "after" and not look["adaptive"]]


def main(pairs: list[str]) -> None:
    """Print the grids beside the range tests, and every rule's rho over the best one of each task."""
    form = next(form for form in forms() if form.name == "SAM")
    print("| task | base | best rho: accuracy | within noise of it | range test | holds the best |")
    print("| --- " * 6 + "|")
    chosen: dict[str, list[float | None]] = {}
    for pair in pairs:
        range_folder, _, sweep = pair.partition("=")
        base, arms = grid(Path(sweep))
        best = max(arms, key=lambda point: point.values.mean())
        rho, height = best.arguments["sam_rho"], best.values.mean()
        noise = np.sqrt(np.mean([point.values.var(ddof=1) for point in arms]))
        near = ", ".join(f"{p.arguments['sam_rho']:g}" for p in arms if p.values.mean() >= height - noise)
        found = range_of(looks(Path(range_folder)), form, adaptive=False)
        low, high = (found.low, found.high) if found.is_one else (None, None)
        is_range = low is not None and high is not None
        text = f"{low:.2g} .. {high:.2g}" if is_range else f"none: {found.why_not}"
        holds = "" if not is_range else "yes" if low <= rho <= high else "no"
        print(f"| {Path(sweep).name} | {base.values.mean():.1f} | {rho:g}: {height:.1f} | {near} | {text} | {holds} |")
        rules = {row["rule"]: row["rho"] for row in candidates(looks(Path(range_folder)))}
        rules["middle of the range"] = math.sqrt(low * high) if is_range else None
        for rule, value in rules.items():
            chosen.setdefault(rule, []).append(None if value is None else value / rho)
    print(f"\n| rule: its rho over the best | {' | '.join(Path(pair.partition('=')[2]).name for pair in pairs)} |")
    print("| --- " * (len(pairs) + 1) + "|")
    for rule, ratios in chosen.items():
        cells = ["" if ratio is None else f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}" for ratio in ratios]
        print(f"| {rule.replace('|', _BAR)} | {' | '.join(cells)} |")
    near = [rule for rule, r in chosen.items() if all(x is not None and 1 / FACTOR <= x <= FACTOR for x in r)]
    print(f"\nwithin a factor {FACTOR:g} on all: {', '.join(near) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:])
