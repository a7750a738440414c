"""Two gloo ranks, the loss measured around the weights: under DDP, and sharded by FSDP2 and HSDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cases_trainer import WRAPPED, load, texts, trainer
from launch import case
from models import Net, classification
from torch import nn

from hf_sharpness import MeasureSharpness
from hf_sharpness.measure.hessian import Hessian

ADAMW = {"optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1}
SETTINGS = {"every": 2, "adaptive_rho": (0.5,), "worst_rho": (0.1,), "worst_steps": 2}


def measured(made: Any, **settings: Any) -> dict[str, Any]:
    """Train, and measure every other step; at the end the Hessian too."""
    callback = MeasureSharpness(made, **(SETTINGS | settings))
    made.add_callback(callback)
    made.train()
    with callback._surface() as surface:
        hessian = Hessian(surface)
        top, trace = hessian.eigenvalues(1), hessian.trace(2)
    log = [entry for entry in made.state.log_history if "measure_loss" in entry]
    return {"weights": made.weights, "log": log, "hessian": [*top.values, trace.value]}


@case("plain", "measured")
def ddp(directory: Path, name: str) -> dict[str, Any]:
    """Thirteen examples in batches of three: five batches for two ranks."""
    made = trainer(directory, Net(lambda: nn.Dropout(0.5)).double(), classification(80, seed=5), **ADAMW, max_steps=4)
    if name == "plain":
        made.train()
        return {"weights": made.weights}
    return measured(made, examples=13, batch_size=3)


@case(*WRAPPED, usually="^$")
def llama_by(directory: Path, wrapper: str) -> dict[str, Any]:
    model = load(directory, **WRAPPED[wrapper])
    made = trainer(directory, model, texts(), collator=None, per_device_train_batch_size=2, max_steps=4, **ADAMW)
    return measured(made, examples=7, batch_size=2)
