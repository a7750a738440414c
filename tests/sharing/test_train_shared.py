"""`hf-sharpness train user/repo`, the whole command: from the repo on the Hub to the outputs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stand_in import Client, Hub

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
task: image-classification
description: a tiny ViT on a few digits
model:
  model_type: vit
  config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16, patch_size: 4,
           image_size: 8, num_channels: 1}
data: {source: digits, train_samples: 64, eval_samples: 16, test_samples: 16}
metrics: [accuracy]
training:
  optim: wsam
  sam_rho: 0.07
  max_steps: 3
  logging_steps: 1
  per_device_train_batch_size: 16
  learning_rate: 0.003
"""


def train(hub: Hub, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command in a folder, in a process whose Hub the stand-in is."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf-home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "hf_sharpness.cli", "train", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_recipe_of_somebody_else_is_trained(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("datasets")
    hub.commit("user/digits", {"recipe.yaml": RECIPE.encode()}, revision="v1")
    hub.commit("user/digits", {"recipe.yaml": b"task: none\n"})
    flags = ("--sam_rho", "0.1", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--output_dir", "out")
    done = train(hub, tmp_path, "user/digits@v1", *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    output = tmp_path / "out"
    assert {"model.safetensors", "config.json", "sharpness_config.json", "test_results.json"} <= {
        path.name for path in output.iterdir()
    }
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "sharpness" in entry] == [1, 2, 3]
    assert all(0.09 < entry["perturbation_norm"] < 0.11 for entry in history if "sharpness" in entry)
    assert "test_accuracy" in json.loads((output / "test_results.json").read_text())
    saved = yaml.safe_load((output / "recipe.yaml").read_text())
    assert (saved["training"]["optim"], saved["training"]["sam_rho"]) == ("wsam", 0.1)
    assert not {"output_dir", "report_to"} & set(saved["training"])


def refused(folder: Path, *arguments: str) -> tuple[int, str]:
    """Called in the client's process: exit status and what the command prints as its error."""
    from hf_sharpness.cli import main

    error = io.StringIO()
    os.chdir(folder)
    with contextlib.redirect_stderr(error):
        status = main(["train", *arguments])
    return status, error.getvalue()


@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        (RECIPE + "  output_dir: /tmp/elsewhere\n", "training: 'output_dir': '/tmp/elsewhere' is not allowed"),
        (RECIPE + "  hub_token: x\n", "training: 'hub_token': 'x' is not allowed"),
        (
            RECIPE.replace("model_type: vit", "name_or_path: /home/user/model"),
            "model: '/home/user/model' is not allowed",
        ),
        (RECIPE.replace("[accuracy]", "[./metric.py]"), "metrics: './metric.py' is not allowed"),
        (RECIPE.replace("0.07", "!!python/object/apply:os.system [touch pwned]"), "the tag "),
    ],
    ids=["output", "token", "model", "metric", "tag"],
)
def test_a_hostile_recipe_is_refused(hostile: str, problem: str, hub: Hub, online: Client, tmp_path: Path) -> None:
    """With one line, before anything is trained or written."""
    hub.commit("user/hostile", {"recipe.yaml": hostile.encode()})
    status, error = online(refused, tmp_path, "user/hostile", "--use_cpu")
    assert status == 2
    assert problem in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
