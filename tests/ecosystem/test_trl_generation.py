"""TRL's trainers that generate what they train on: generated once, by unperturbed weights, and every pass sees it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COMMANDS = {"mixed-in": [], "patched": ["-m", "hf_sharpness.run"]}
REPLAYS = {"sam-0": 1, "sam": 1, "sam-micro-batch": 1, "wsam": 1, "xsam": 4}
GENERATIONS = {"one": 4, "accumulated": 4, "reused": 2}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="needs trl"),
]


def run(folder: Path, layout: str, kind: str, *shapes: str) -> None:
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *COMMANDS[layout], HERE / "generating_run.py", folder, layout, kind, *shapes]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("layout", "kind", "shapes"),
    [
        ("mixed-in", "grpo", ("one", "accumulated", "reused")),
        ("patched", "grpo", ("one", "accumulated")),
        ("mixed-in", "rloo", ("accumulated",)),
    ],
)
def test_completions_are_generated_once(layout: str, kind: str, shapes: tuple[str, ...], tmp_path: Path) -> None:
    run(tmp_path, layout, kind, *shapes)
    for shape in shapes:
        runs = {
            path.stem.removeprefix(f"{shape}-"): json.loads(path.read_text()) for path in tmp_path.glob(f"{shape}-*")
        }
        stock = runs.pop("stock")
        assert set(runs) == set(REPLAYS)
        assert runs["sam-0"]["weights"] == stock["weights"]
        assert clean_logs(runs["sam-0"]) == clean_logs(stock)
        for case, made in runs.items():
            assert len(made["generated"]) == len(stock["generated"]) == GENERATIONS[shape]
            assert len(made["passes"]) == len(stock["passes"]) * (1 + REPLAYS[case])
            check_replays(made)
            # The first optimizer step has the completions of the stock run.
            assert made["generated"][0] == stock["generated"][0]
            assert made["passes"][0] == stock["passes"][0]


def check_replays(made: dict[str, Any]) -> None:
    """Every replay computes from what its first pass did, only the weights differ; generating weights are clean."""
    first: dict[int, list[Any]] = {}
    clean = set()
    for step, completions, advantages, weights, _ in made["passes"]:
        if step not in first:
            first[step] = [completions, advantages]
            clean.add(weights)
        assert first[step] == [completions, advantages]
    assert sorted(first) == list(range(len(first)))
    assert len({json.dumps(seen) for seen in first.values()}) == len(first)
    assert clean >= set(made["generated"])


def clean_logs(made: dict[str, Any]) -> list[dict[str, float]]:
    ours = ("perturbed_loss", "sharpness", "ascent_grad_norm", "perturbation_norm")
    times = ("time", "runtime", "per_second", "total_flos")
    return [{k: v for k, v in entry.items() if k not in ours and not k.endswith(times)} for entry in made["history"]]
