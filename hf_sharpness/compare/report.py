"""What a finished study leaves in its folder: tables, the picture, and the best arm's `sharpness_config.json`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..arguments import SharpnessArguments
from ..sharing.config import save
from ..sharpness_arguments.definitions import shared_arguments
from . import tables
from .errors import CompareError
from .picture import draw
from .results import Study


def write(study: Study, folder: Path) -> None:
    """Write `table.md`, `table.csv`, `compare.png`, and, unless nothing was tuned, `best/sharpness_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(tables.markdown(study), encoding="utf-8")
    (folder / "table.csv").write_text(tables.csv_text(tables.csv_rows(study)), encoding="utf-8")
    try:
        draw(study, folder / "compare.png")
    except CompareError as error:  # a missing picture must not cost a finished study
        print(f"warning: {error}", file=sys.stderr)
    if not study.plan.tuned:
        return
    arguments = study.outcomes[best_arm(study)].arguments
    save(
        SharpnessArguments(**{name: value for name, value in arguments.items() if name in shared_arguments()}),
        folder / "best",
    )


def best_arm(study: Study) -> str:
    """The sharpness-aware arm with the best validation score in tuning; the test data have no say."""
    sign = 1.0 if study.plan.greater_is_better else -1.0

    def score(name: str) -> float:
        value = study.choice.scores[name][study.choice.points[name]]
        return float("-inf") if value is None else sign * value

    return max((arm.name for arm in study.plan.sharpness_arms), key=score)


def summary(studies: Sequence[Study], folder: Path) -> str:
    """What is printed last: where the files are, and the verdicts."""
    best = ", best/sharpness_config.json" if all(study.plan.tuned for study in studies) else ""
    lines = [f"written to {folder}: results.json, table.md, table.csv, compare.png{best}", ""]
    for study in studies:
        lines += [f"{study.plan.name}: {item.sentence}" for item in study.judgements]
    return "\n".join(lines)
