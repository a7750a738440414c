"""Two processes on a CPU: the warning where each trains by itself, and what is logged where they train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_sharpness.training.launch import warn_of_lone_processes

HERE = Path(__file__).resolve().parent
WARNING = "2 processes were started, but each trains by itself"


@pytest.mark.parametrize(
    ("environment", "world_size", "warned"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, 1, False),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, False),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, False),
        ({}, 1, False),
    ],
)
def test_who_is_warned(environment, world_size, warned, monkeypatch, caplog):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warn_of_lone_processes(SimpleNamespace(world_size=world_size))
    assert (WARNING in caplog.text) == warned
    assert ("--use_cpu" in caplog.text) == warned


def launched(folder: Path, processes: int, *flags: str) -> tuple[list[dict[str, float]], str]:
    """The losses that the first rank logged, and all that was printed."""
    options = ["--max_steps", "2", "--logging_steps", "1", "--report_to", "none", "--save_strategy", "no"]
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command += [str(HERE / "script_ranks.py"), "--output_dir", str(folder), *options, *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOGGED")]
    return json.loads(line.removeprefix("LOGGED")), done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_without_use_cpu_is_warned_of_once(tmp_path):
    for optim in ("sam", "adamw_torch"):
        _, printed = launched(tmp_path, 2, "--optim", optim)
        assert printed.count(WARNING) == 1
    _, printed = launched(tmp_path, 2, "--optim", "sam", "--use_cpu")
    assert WARNING not in printed


@pytest.mark.slow
@pytest.mark.parametrize(("average", "factor"), [("true", 2), ("false", 1)])
def test_sharpness_is_logged_in_the_units_of_the_loss(average, factor, tmp_path):
    flags = ["--optim", "wsam", "--sam_rho", "0.1", "--use_cpu", "--average_tokens_across_devices", average]
    one, _ = launched(tmp_path, 1, *flags, "--per_device_train_batch_size", "16")
    two, _ = launched(tmp_path, 2, *flags, "--per_device_train_batch_size", "8")
    for alone, together in zip(one, two, strict=True):
        for key in ("loss", "perturbed_loss", "sharpness"):
            assert together[key] == pytest.approx(factor * alone[key], rel=1e-2)
        assert together["sharpness"] == pytest.approx(together["perturbed_loss"] - together["loss"], abs=1e-5)
