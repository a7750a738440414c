"""The launchers of torch and Accelerate, with two processes on the CPU; the Hub at the end of a script."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMON, SCRIPTS, Finished, flags

pytestmark = pytest.mark.slow
Process = Callable[..., Finished]
ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def classification(assets: Path, output: str, **given: Any) -> list[str]:
    arguments = {
        **COMMON,
        "per_device_train_batch_size": 2,
        "model_name_or_path": assets / "models" / "bert",
        "train_file": assets / "data" / "train.csv",
        "validation_file": assets / "data" / "validation.csv",
        "do_train": True,
        "do_eval": True,
        "ddp_find_unused_parameters": False,
        "output_dir": output,
    }
    return [str(SCRIPTS / "text_classification.py"), *flags({**arguments, **given})]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes(launcher: str, process: Process, assets: Path, tmp_path: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text(ACCELERATE)
    runs = {}
    for name, module, given in (
        ("plain", [], {}),
        ("stock", ["-m", "hf_sharpness.run"], {}),
        ("wsam", ["-m", "hf_sharpness.run"], {"optim": "wsam"}),
    ):
        command = {
            "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()],
            "accelerate": [
                *("accelerate.commands.launch", "--config_file", "accelerate.yaml"),
                *("--main_process_port", free_port()),
            ],
        }[launcher]
        done = process("-m", *command, *module, *classification(assets, name, **given), output=name)
        assert done.status == 0, done.log
        runs[name] = done
    assert runs["stock"].weights == runs["plain"].weights != runs["wsam"].weights
    assert runs["stock"].history == runs["plain"].history
    assert [e["sharpness"] > 0 for e in runs["wsam"].history if "loss" in e] == [True] * 3
    assert runs["wsam"].metrics("train")["train_samples"] == 32


@pytest.fixture
def hub() -> Iterator[Any]:
    sys.path.append(str(Path(__file__).parents[1] / "sharing"))
    from stand_in import Hub

    sys.path.pop()
    with Hub() as server:
        yield server


def test_push_to_hub(hub: Any, process: Process, assets: Path) -> None:
    """`push_to_hub` at the end: the model, its card and the configuration of the method."""
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": hub.TOKEN}
    arguments = classification(assets, "model", optim="wsam", push_to_hub=True, hub_model_id="user/model")
    done = process("-m", "hf_sharpness.run", *arguments, output="model", **online, NO_PROXY="127.0.0.1")
    assert done.status == 0, done.log
    _, files = hub.repos["user/model"].files("main")
    assert {"config.json", "model.safetensors", "sharpness_config.json", "README.md"} <= files.keys()
    assert b"wsam" in files["README.md"]
