"""hyperparameter_search on many machines, as far as one shows it: Ray Tune, and optuna with a shared journal."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, classification

HERE = Path(__file__).parent


def start(backend: str, folder: Path, output: str) -> subprocess.Popen:
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, HERE / "search_run.py", backend, folder, folder / output]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, **pipes)


def finished(process: subprocess.Popen, folder: Path, output: str) -> dict[str, Any]:
    log, _ = process.communicate(timeout=900)
    assert process.returncode == 0, log[-4000:]
    return json.loads((folder / output).read_text())


def check(result: dict[str, Any], trials: int) -> None:
    """Every trial's loss is bit for bit that of a plain run with its values, and the best is the best."""
    assert len({loss for _, loss in result["trials"]}) == trials
    assert [loss for _, loss in result["trials"]] == result["plain"]
    assert result["best"] == min(result["trials"], key=lambda trial: trial[1])


def test_over_an_argument_that_is_a_word_or_a_number(train: Callable[..., Any]) -> None:
    """transformers turns a trial's value into the type of what the argument was."""
    optuna = pytest.importorskip("optuna")
    items = classification(32, torch.float32)
    run = train(Net(), items, optim="xsam", max_steps=3)
    run.trainer.model_init, run.trainer.eval_dataset = lambda: Net(), items
    seen = []
    run.trainer.hyperparameter_search(
        lambda trial: {"xsam_refresh": trial.suggest_categorical("xsam_refresh", [1, 3])},
        compute_objective=lambda metrics: seen.append(run.trainer.args.xsam_refresh) or metrics["eval_loss"],
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"xsam_refresh": [1, 3]}),
    )
    assert sorted(seen) == [1, 3]


@pytest.mark.slow
def test_ray(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray")
    result = finished(start("ray", tmp_path, "result"), tmp_path, "result")
    check(result, trials=4)
    assert {tuple(values.values()) for values, _ in result["trials"]} == {
        (r, g) for r in (0.05, 0.4) for g in (0.2, 0.7)
    }


@pytest.mark.slow
def test_two_processes_share_an_optuna_study(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    outputs = ("first", "second")
    processes = [start("optuna", tmp_path, output) for output in outputs]
    results = [finished(*made) for made in zip(processes, (tmp_path,) * 2, outputs, strict=True)]
    check(max(results, key=lambda result: len(result["trials"])), trials=6)


def test_over_the_method_and_stock_optimizers(train: Callable[..., Any]) -> None:
    """Every trial is the plain run with its optim, whatever the one before was."""
    optuna = pytest.importorskip("optuna")
    items, names = classification(32, torch.float32), ["sam", "sgd", "wsam"]
    options = {"base_optim": "sgd", "max_steps": 3, "learning_rate": 0.1}
    run = train(Net(), items, optim="sam", **options)
    run.trainer.model_init = lambda: Net()
    seen = {}

    def objective(metrics: Any) -> float:
        trainer = run.trainer
        seen[trainer.args.optim] = trainer.model.first.weight.detach().clone()
        return metrics["eval_loss"]

    run.trainer.eval_dataset = items
    run.trainer.hyperparameter_search(
        lambda trial: {"optim": trial.suggest_categorical("optim", names)},
        compute_objective=objective,
        n_trials=3,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"optim": names}),
    )
    for name in names:
        plain = train(Net(), items, optim=name, **options)
        assert torch.equal(seen[name], plain.model.first.weight), name
