"""What pickles, configs of other tools and processes of earlier versions name stays where they look for it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from models import Net, classification

import hf_sharpness

NAMED = {
    "hf_sharpness": ["SAM", "SharpnessArguments", "SharpnessTrainerMixin", "TrainingArguments", "Trainer", "WSAM"],
    "hf_sharpness.arguments": [
        *("Seq2SeqTrainingArguments", "SharpnessArguments", "TrainingArguments", "_SharpnessArguments"),
        *("HYPERPARAMETERS", "SHARED"),
    ],
    "hf_sharpness.trainer": ["LOGGED", "Seq2SeqTrainer", "SharpnessTrainerMixin", "Trainer"],
    "hf_sharpness.loop": ["SAM", "SharpnessAware", "WSAM", "XSAM"],
    "hf_sharpness.methods": ["SAM", "WSAM", "XSAM"],
    "hf_sharpness.methods.sam": ["SAM"],
    "hf_sharpness.methods.wsam": ["WSAM"],
    "hf_sharpness.methods.xsam": ["XSAM"],
    "hf_sharpness.patching": ["install"],
    "hf_sharpness.run": ["main"],
    "hf_sharpness.training.callback": ["SharpnessCallback"],
    "hf_sharpness.vectors": ["dot", "norm", "Vector"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMED.items() for name in names])
def test_a_pickle_finds_it(module: str, name: str) -> None:
    """By the two words that a pickle has of a class."""
    assert pickle.loads(f"c{module}\n{name}\n.".encode()) is not None


def test_what_is_pickled_today_says_the_same() -> None:
    arguments = hf_sharpness.TrainingArguments("out", optim="wsam", use_cpu=True)
    assert b"hf_sharpness.arguments" in pickle.dumps(arguments)
    model = torch.nn.Linear(1, 1)
    method = hf_sharpness.WSAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (type(method).__module__, type(method.method).__module__) == (
        "hf_sharpness.loop",
        "hf_sharpness.methods.wsam",
    )


PLUGIN = """
import importlib, sys, types

base = types.ModuleType("axolotl.integrations.base")
base.BasePlugin = type("BasePlugin", (), {})
sys.modules |= {name: types.ModuleType(name) for name in ("axolotl", "axolotl.integrations")}
sys.modules["axolotl.integrations.base"] = base


def load(path):  # as Axolotl does it
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


plugin = load("hf_sharpness.integrations.axolotl.SharpnessPlugin")()
print(load(plugin.get_input_args())(sharpness="wsam", sam_rho=0.2).sam_rho, issubclass(type(plugin), base.BasePlugin))
print(load(plugin.get_training_args_mixin()) is load("hf_sharpness.integrations.axolotl.SharpnessArguments"))
"""


def test_axolotls_plugin_is_where_its_configs_say() -> None:
    """With a stand-in for Axolotl; ``tests/ecosystem/test_axolotl.py`` runs the real one."""
    done = subprocess.run([sys.executable, "-c", PLUGIN], capture_output=True, text=True, timeout=300)
    assert done.stdout == "0.2 True\nTrue\n", done.stderr


def test_the_key_in_trainer_state_json(train: Any) -> None:
    """Under another one XSAM's alpha* would be lost."""
    run = train(Net(), classification(8, torch.float32), optim="xsam", xsam_alpha_points=2, max_steps=1)
    assert set(run.trainer.state.stateful_callbacks["SharpnessCallback"]["attributes"]) >= {"method_state"}
