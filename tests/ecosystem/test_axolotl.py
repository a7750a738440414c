"""The plugin in the real Axolotl's classes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("axolotl") is None, reason="needs axolotl")
@pytest.mark.parametrize("optimizer", ["wsam", "adamw_torch"])
def test_train(optimizer: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    command = [sys.executable, HERE / "axolotl_run.py", tmp_path, optimizer]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    history = [entry for entry in result["history"] if "loss" in entry]
    assert len(history) == 3
    norms = [entry["perturbation_norm"] for entry in history if "perturbation_norm" in entry]
    assert norms == (pytest.approx([0.2] * 3, rel=1e-3) if optimizer == "wsam" else [])
    for key, message in zip(("rl", "trainer_cls"), result["refusals"], strict=True):
        assert f"sharpness: wsam does not go with {key}: dpo" in message
