"""How large the term is that WSAM adds after a step, beside the base optimizer's step, and whether runs diverged.

    hf-sharpness train RECIPE --optim wsam --wsam_mode decoupled --logging_steps 10 --output_dir RUN   # and others
    python scripts/term_size.py RUN ...

`wsam_step_ratio` is measured in the steps that are logged. Runs that differ in their seed alone make one row.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SETTINGS = ("base_optim", "optim_args", "learning_rate", "wsam_mode", "wsam_gamma", "sam_rho")
HEADER = ("task", "base", "learning rate", "mode", "rho", "seeds", "term over step: median (10 - 90 %)", "diverged")


def read(folder: Path) -> tuple[tuple[Any, ...], list[float], bool]:
    """What a run was, its ratios, and whether its loss stopped being a number."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    training = recipe["training"]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    ratios = [entry["wsam_step_ratio"] for entry in history if "wsam_step_ratio" in entry]
    if not ratios:
        raise SystemExit(f"{folder}: no wsam_step_ratio was logged: use optim wsam, not coupled, --logging_steps 10")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    task = f"{recipe['model'].get('model_type') or recipe['model'].get('name_or_path')}, {recipe['data']['source']}"
    return (task, *(training.get(name) for name in SETTINGS)), ratios, not all(map(math.isfinite, losses))


def table(folders: list[Path]) -> str:
    """One row for all runs of one setting."""
    found: dict[tuple[Any, ...], list[tuple[list[float], bool]]] = {}
    for folder in folders:
        setting, ratios, diverged = read(folder)
        found.setdefault(setting, []).append((ratios, diverged))
    rows = [HEADER, ("---",) * len(HEADER)]
    for (task, base, options, rate, mode, gamma, rho), runs in found.items():
        low, middle, high = np.percentile([ratio for ratios, _ in runs for ratio in ratios], [10, 50, 90])
        name = f"{base} ({options})" if options else base
        form = mode if gamma is None else f"{mode}, {gamma}"
        size = f"{middle:.2g} ({low:.2g} - {high:.2g})"
        rows.append((task, name, rate, form, rho, len(runs), size, sum(diverged for _, diverged in runs)))
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))
