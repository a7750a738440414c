"""The plugin in the real Axolotl's classes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from models.text import language_model, tokenizer

HERE = Path(__file__).parent


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("axolotl") is None, reason="needs axolotl"),
]
CONFIG = {
    "base_model": "./model",
    "datasets": [{"path": "./toy.jsonl", "type": "alpaca", "ds_type": "json"}],
    "optimizer": "adamw_torch",
    "sequence_len": 64,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "output_dir": "./out",
    "save_strategy": "no",
    "val_set_size": 0,
    **dict.fromkeys(("bf16", "fp16", "tf32"), False),
    "special_tokens": {"pad_token": "[PAD]"},
}
PLUGIN = {
    "plugins": ["hf_sharpness.integrations.axolotl.SharpnessPlugin"],
    "sharpness": "wsam",
    "sam_rho": 0.2,
}
RUN = ["-m", "hf_sharpness.run"]


def environment(*folders: Path) -> dict[str, str]:
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, "PYTHONPATH": path, "PATH": commands, **quiet}


@pytest.mark.parametrize(
    ("before", "added"),
    [
        (["-m", "axolotl.cli.main"], PLUGIN),
        ([*RUN, "axolotl"], PLUGIN),
        ([*RUN, "--set", "optim=wsam", "--set", "sam_rho=0.2", "axolotl"], {}),
    ],
    ids=["plugin", "both", "run"],
)
def test_its_command_line(before: list[str], added: dict[str, Any], tmp_path: Path) -> None:
    """It starts accelerate, which starts the training."""
    for made in (language_model(), tokenizer()):
        made.save_pretrained(tmp_path / "model")
    rows = [json.dumps({"instruction": "a b c", "input": "", "output": f"the cat sat {i}"}) for i in range(40)]
    (tmp_path / "toy.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **added}))
    command = [sys.executable, *before, "train", "config.yaml"]
    given = {"cwd": tmp_path, "env": environment(HERE.parents[1]), "timeout": 600}
    done = subprocess.run(command, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout + done.stderr
    assert "WSAM: rho 0.2, gamma 0.6 coupled, on adamw_torch; 2 passes a step" in said
    assert "WSAM: 3 of 3 optimizer steps were sharpness-aware" in said


@pytest.mark.parametrize("optimizer", ["wsam", "adamw_torch"])
def test_train(optimizer: str, tmp_path: Path) -> None:
    command = list(map(str, [sys.executable, HERE / "axolotl_run.py", tmp_path, optimizer]))
    paths = environment(HERE.parents[1], HERE.parent)
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    history = [entry for entry in result["history"] if "loss" in entry]
    assert len(history) == 3
    norms = [entry["perturbation_norm"] for entry in history if "perturbation_norm" in entry]
    assert norms == (pytest.approx([0.2] * 3, rel=1e-3) if optimizer == "wsam" else [])
    for key, message in zip(("rl", "trainer_cls"), result["refusals"], strict=True):
        assert f"sharpness: wsam does not go with {key}: dpo" in message
