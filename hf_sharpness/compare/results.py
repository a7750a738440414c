"""`results.json`: everything that a table is made from, and from which another machine can go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .choice import Choice, choose
from .errors import CompareError
from .judge import Judgement, judge
from .outcomes import Outcome, collect
from .packing import unpack
from .plan import Plan, Run

RESULTS = "results.json"
SCHEMA, VERSION = "hf-sharpness-compare", 1


@dataclasses.dataclass(frozen=True)
class Study:
    """A study whose runs are all finished, with everything that follows from them."""

    plan: Plan
    choice: Choice
    outcomes: dict[str, Outcome]
    judgements: list[Judgement]
    command: str
    environments: list[str]
    date: str

    @property
    def signature(self) -> str:
        """One line with which a number can be quoted, as sacrebleu's."""
        plan = self.plan
        parts = {
            "task": plan.name,
            "metric": plan.metric,
            "judged-on": plan.facts.get("judged on", "test"),
            "arms": "+".join(arm.name for arm in plan.arms),
            "tuning": f"{len(plan.points)}x{len(plan.tuning_seeds)}",
            "seeds": str(len(plan.final_seeds)),
            "splits": plan.facts.get("splits", "of the script").replace(" ", "-"),
            "noise": plan.facts.get("label noise", "none"),
            "length": f"{plan.length.argument}-{plan.length.value:g}",
            "on": "+".join(self.environments),
        }
        return "|".join([f"hf-sharpness-compare:{VERSION}", *(f"{key}:{value}" for key, value in parts.items())])


def environment() -> str:
    """Versions and hardware of this process, in one word."""
    import torch
    import transformers

    device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    return (
        f"hf_sharpness-{__version__},torch-{torch.__version__},transformers-{transformers.__version__},"
        f"python-{platform.python_version()},{platform.machine()}-{device}"
    )


def write(folder: Path, plan: Plan, records: Mapping[str, dict[str, Any]], command: str) -> Study | None:
    """Write `results.json` with the runs that are finished. Returns the study once all of them are."""
    runs, labels = [], None
    for key in sorted(records):
        record = dict(records[key])
        labels = record.pop("labels", None) or labels
        stage, arm, point, seed = key.split("/")
        place = {"stage": stage, "arm": arm, "point": int(point), "seed": int(seed)}
        runs.append({**place, "arguments": plan.arguments(arm, int(point)), **record})
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "command": command,
        "plan": plan.to_json(),
        "labels": labels,
        "runs": runs,
    }
    study = _study(content)
    if study is not None:
        content.update(_conclusions(study))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{RESULTS}.{os.getpid()}"
    partial.write_text(_lines(content), encoding="utf-8")
    partial.replace(folder / RESULTS)  # whole or not at all, also under Ctrl-C
    return study


def read(folder: Path) -> dict[str, Any]:
    """The content of a `results.json`.

    Raises:
        CompareError: There is none, or it is none of ours.
    """
    path = folder / RESULTS if folder.is_dir() else folder
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CompareError(
            f"{path}: cannot be read: {error.strerror}; name a folder that compare has written"
        ) from None
    except ValueError as error:
        raise CompareError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise CompareError(f"{path}: is not a result of hf-sharpness compare (its schema is not {SCHEMA!r})")
    if content.get("version") != VERSION:
        raise CompareError(
            f"{path}: has version {content.get('version')!r}, and this hf-sharpness reads {VERSION}: use a newer one"
        )
    return content


def records_of(content: Mapping[str, Any]) -> dict[str, tuple[Run, dict[str, Any]]]:
    """The runs of a `results.json` by key, with their records."""
    found = {}
    place = ("stage", "arm", "point", "seed", "arguments")
    for entry in content["runs"]:
        run = Run(entry["stage"], entry["arm"], entry["point"], entry["seed"])
        record = {key: value for key, value in entry.items() if key not in place}
        if "predictions" in record and content.get("labels") is not None:
            record["labels"] = content["labels"]
        found[run.key] = (run, record)
    return found


def load(folder: Path) -> Study:
    """The study of a folder.

    Raises:
        CompareError: There is none, or it is not finished.
    """
    content = read(folder)
    study = _study(content)
    if study is None:
        raise CompareError(f"{folder}: the study is not finished; run the same command again to go on")
    return study


def _study(content: Mapping[str, Any]) -> Study | None:
    plan = Plan.from_json(content["plan"])
    records = {key: record for key, (_, record) in records_of(content).items()}
    if any(run.key not in records for run in plan.tuning_runs()):
        return None
    choice = choose(plan, records)
    finals = plan.final_runs(choice.points)
    if any(run.key not in records for run in finals):
        return None
    outcomes = collect(plan, choice, records)
    labels = None if content["labels"] is None else unpack(content["labels"])
    environments = sorted({record["environment"] for record in records.values()})
    date = max(record["date"] for record in records.values())
    return Study(plan, choice, outcomes, judge(plan, outcomes, labels), content["command"], environments, date)


def _conclusions(study: Study) -> dict[str, Any]:
    return {
        "signature": study.signature,
        "chosen": dataclasses.asdict(study.choice),
        "verdicts": [
            {
                "arm": item.arm,
                "verdict": item.decision.verdict,
                "p": item.decision.p,
                "sentence": item.sentence,
                "detectable": _finite(item.detectable),
                "unit": item.unit.word or study.plan.metric,
                "gains": [
                    {
                        "base": pair.base,
                        "mean": pair.mean,
                        "p": pair.p,
                        "over_seeds": [_finite(bound) for bound in pair.seed_interval],
                        "over_test_examples": None
                        if pair.example_interval is None
                        else [_finite(bound) for bound in pair.example_interval],
                    }
                    for pair in item.pairs
                ],
            }
            for item in study.judgements
        ],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with one run a line, so that a diff shows what was added."""
    runs = ",\n".join(f"    {json.dumps(run, sort_keys=True, default=_plain)}" for run in content["runs"])
    rest = {key: value for key, value in content.items() if key != "runs"}
    text = json.dumps({**rest, "runs": "@runs"}, indent=2, default=_plain)
    return text.replace('"@runs"', f"[\n{runs}\n  ]" if runs else "[]") + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is not JSON")
