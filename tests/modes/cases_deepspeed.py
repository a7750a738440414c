"""Two gloo ranks, the Trainer under DeepSpeed's ZeRO stages 1, 2 and 3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"

import deepspeed
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from launch import case
from models import Net, classification
from specs_of_modes import BASE, MAX_NORM, METHODS, named, without_decay

PartialState(cpu=True)  # reads the environment above
os.environ.pop("ACCELERATE_USE_DEEPSPEED")
# On a CPU DeepSpeed would compile an operator of its own in place of gloo, which takes a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

from cases_trainer import trainer  # noqa: E402

STAGES = (1, 2, 3)
SGD = without_decay(BASE).arguments() | {"max_grad_norm": MAX_NORM}


def config(stage: int, **sections: Any) -> dict[str, Any]:
    """Small buckets, so that there are several, and in ZeRO-3 parameters that persist and others that do not."""
    sizes = {"reduce_bucket_size": 40, "stage3_prefetch_bucket_size": 20, "stage3_param_persistence_threshold": 10}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"zero_optimization": {"stage": stage, **sizes}, **dict.fromkeys(auto, "auto"), **sections}


def weights(made: Any) -> torch.Tensor:
    """What the model computes with, all of it, in the order of its parameters."""
    parameters = list(made.model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=hasattr(parameters[0], "ds_id")):
        return torch.cat([p.detach().float().reshape(-1) for p in parameters])


def zero_trainer(directory: Path, stage: int, model: Any = None, sections: Any = None, **arguments: Any) -> Any:
    AcceleratorState._reset_state()
    arguments = {"deepspeed": config(stage, **(sections or {})), "gradient_accumulation_steps": 2} | arguments
    items = arguments.pop("items", None) or classification(80, torch.float32, seed=5)
    made = trainer(directory, model or Net(), items, **arguments)
    made.weights_of = weights
    return made


def trained(*args: Any, **kwargs: Any) -> dict[str, Any]:
    made = zero_trainer(*args, **kwargs)
    made.train()
    return {"weights": made.weights, "log": made.state.log_history[:-1]}


@case(*[f"{stage}-{spec.name}" for stage in STAGES for spec in METHODS])
def exact(directory: Path, name: str) -> dict[str, Any]:
    """The same batches as `rank_batches` gives each rank."""
    stage, _, method = name.partition("-")
    return trained(directory, int(stage), **(SGD | named(method).arguments()))
