"""The sharpness series reach TensorBoard, W&B, MLflow and trackio; read back from what the real packages wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, classification

HERE = Path(__file__).parent
COMMON = {"loss", "perturbed_loss", "sharpness", "ascent_grad_norm", "perturbation_norm"}
METHODS = {
    "xsam": ({"optim": "xsam"}, COMMON | {"xsam_alpha", "xsam_psi"}),
    "wsam": ({"optim": "wsam", "wsam_mode": "decoupled"}, COMMON | {"wsam_step_ratio"}),
}
every_method = pytest.mark.parametrize("method", METHODS)
Series = dict[str, list[float]]


def expected(history: list[dict[str, float]], names: set[str]) -> Series:
    """What the Trainer logged."""
    logged = [entry for entry in history if "sharpness" in entry]
    assert len(logged) == 4
    return {name: [entry[name] for entry in logged] for name in names}


@every_method
def test_tensorboard(method: str, train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    arguments, names = METHODS[method]
    run = train(Net(), classification(32, torch.float32), report_to="tensorboard", max_steps=4, **arguments)
    written = events.EventAccumulator(str(tmp_path / "events")).Reload()
    for name, values in expected(run.trainer.state.log_history, names).items():
        scalars = written.Scalars(f"train/{name}")
        assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
        assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)


def logged(folder: Path, logger: str, method: str) -> Series:
    """Run the script in the folder, and return what it should have reported."""
    arguments, names = METHODS[method]
    flags = {
        "output_dir": "out",
        "report_to": logger,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": "true",
        **arguments,
    }
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    offline = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    command = [
        sys.executable,
        HERE / "logged_run.py",
        "--use_cpu",
        *(t for k, v in flags.items() for t in (f"--{k}", v)),
    ]
    environment = {**os.environ, **offline, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return expected(json.loads((folder / "out/trainer_state.json").read_text())["log_history"], names)


def from_wandb(folder: Path, names: set[str]) -> Series:
    """From the offline run's file: JSON values beside their keys, each once in the history and once in the summary."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    found = {name: re.findall(rf"train/{name}\x82\x01.([-+.e\d]+)".encode(), content, re.S) for name in names}
    return {name: [float(value) for value in values[::2]] for name, values in found.items()}


def from_mlflow(folder: Path, names: set[str]) -> Series:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {name: [m.value for m in client.get_metric_history(run.info.run_id, name)] for name in names}


def from_trackio(folder: Path, names: set[str]) -> Series:
    (file,) = folder.glob("trackio/*.db")
    with closing(sqlite3.connect(file)) as database:
        rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics order by step")]
    return {name: [row[f"train/{name}"] for row in rows if f"train/{name}" in row] for name in names}


@pytest.mark.slow
@every_method
@pytest.mark.parametrize(
    ("logger", "read"), [("wandb", from_wandb), ("mlflow", from_mlflow), ("trackio", from_trackio)]
)
def test_offline(logger: str, read: Callable[[Path, set[str]], Series], method: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(logger) is None:
        pytest.skip(f"needs {logger}")
    series = logged(tmp_path, logger, method)
    assert read(tmp_path, set(series)) == series
