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
    form = next(form for form in forms() if form.name == "SAM")
    print("| task | base | best rho: accuracy | within noise of it | range test | holds the best |")
    print("| --- " * 6 + "|")
    rows: dict[str, list[str]] = {}
    for pair in pairs:
        range_folder, _, sweep = pair.partition("=")
        base, arms = grid(Path(sweep))
        best = max(arms, key=lambda point: point.values.mean())
        rho = best.arguments["sam_rho"]
        noise = np.sqrt(np.mean([point.values.var(ddof=1) for point in arms]))
        near = [f"{p.arguments['sam_rho']:g}" for p in arms if p.values.mean() >= best.values.mean() - noise]
        found = range_of(looks(Path(range_folder)), form, adaptive=False)
        text = f"{found.low:.2g} .. {found.high:.2g}" if found.is_one else f"none: {found.why_not}"
        holds = "" if not found.is_one else "yes" if found.low <= rho <= found.high else "no"
        name = Path(sweep).name
        print(
            f"| {name} | {base.values.mean():.1f} | {rho:g}: {best.values.mean():.1f} | {', '.join(near)} "
            f"| {text} | {holds} |"
        )
        for row in candidates(looks(Path(range_folder))):
            cell = "" if row["rho"] is None else f"{row['rho']:.2g} ({row['rho'] / rho:.2g} x)"
            rows.setdefault(row["rule"], []).append(cell)
        middle = math.sqrt(found.low * found.high) if found.is_one and found.low and found.high else None
        cell = "" if middle is None else f"{middle:.2g} ({middle / rho:.2g} x)"
        rows.setdefault("middle of the range test", []).append(cell)
    print(f"\n| rule | {' | '.join(Path(pair.partition('=')[2]).name for pair in pairs)} |")
    print("| --- " * (len(pairs) + 1) + "|")
    for rule, cells in rows.items():
        print(f"| {rule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
