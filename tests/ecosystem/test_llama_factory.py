"""LLaMA-Factory's own command under `hf-sharpness run`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from models.text import WORDS, language_model, tokenizer

CONFIG = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 2,
    "lora_target": "q_proj,v_proj",
    "dataset": "toy",
    "dataset_dir": "data",
    "template": "empty",
    "cutoff_len": 32,
    "output_dir": "out",
    "optim": "wsam",
    "sam_rho": 0.1,
    "max_steps": 3,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="needs llamafactory")
@pytest.mark.parametrize(
    ("program", "variables"),
    [
        (["-m", "llamafactory.cli"], {}),
        (["llamafactory-cli"], {}),
        (["llamafactory-cli"], {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}),  # it starts torchrun on its own
    ],
)
def test_train(program: list[str], variables: dict[str, str], tmp_path: Path) -> None:
    for made in (language_model(), tokenizer()):
        made.save_pretrained(tmp_path / "model")
    rows = [{"instruction": " ".join(WORDS[:3]), "input": "", "output": " ".join(WORDS[i % 7 :])} for i in range(32)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy.json").write_text(json.dumps(rows))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"toy": {"file_name": "toy.json"}}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "PATH": commands, "OMP_NUM_THREADS": "1", **variables}
    # The second value of rho is LLaMA-Factory's own way of a flag.
    command = [sys.executable, "-m", "hf_sharpness.run", *program, "train", "config.yaml", "sam_rho=0.2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    norms = [entry["perturbation_norm"] for entry in history if "sharpness" in entry]
    assert norms == pytest.approx([0.2] * 3, rel=1e-3)
    assert json.loads((tmp_path / "out/sharpness_config.json").read_text())["optim"] == "wsam"
