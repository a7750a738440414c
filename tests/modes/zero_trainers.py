"""A Trainer under DeepSpeed's ZeRO, small, on one of several ranks; the import sets DeepSpeed up for a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
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
from specs_of_modes import BASE, MAX_NORM, without_decay
from torch import nn

PartialState(cpu=True)  # reads the environment above, which a TrainingArguments must not find
del os.environ["ACCELERATE_USE_DEEPSPEED"]
# On a CPU DeepSpeed would compile an operator of its own for some of gloo's work, which takes a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

from cases_trainer import trainer  # noqa: E402

STAGES = (1, 2, 3)
STEPS = 3
SGD = without_decay(BASE).arguments() | {"max_grad_norm": MAX_NORM, "max_steps": STEPS}
ADAM = {"base_optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1, "lr_scheduler_type": "linear"}


def config(stage: int, zero: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """Small buckets, so that there are several, and in ZeRO-3 parameters that persist and others that do not."""
    sizes = {"reduce_bucket_size": 40, "stage3_prefetch_bucket_size": 20, "stage3_param_persistence_threshold": 10}
    saving = {"stage3_gather_16bit_weights_on_model_save": True}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        "zero_optimization": {"stage": stage} | sizes | saving | (zero or {}),
        **dict.fromkeys(auto, "auto"),
        **sections,
    }


def weights(made: Any) -> torch.Tensor:
    """What the model computes with, all of it, in the order of its parameters."""
    parameters = list(made.model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, enabled=hasattr(parameters[0], "ds_id")):
        return torch.cat([p.detach().float().reshape(-1) for p in parameters])


def parts(made: Any) -> list[torch.Tensor]:
    """What the optimizer steps, on this rank."""
    return [part.detach() for part in parts_as_they_are(made)]


def parts_as_they_are(made: Any) -> list[torch.Tensor]:
    zero = made.model_wrapped.optimizer
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
    return next(getattr(zero, name) for name in names if hasattr(zero, name))


def zero_trainer(directory: Path, model: nn.Module, deepspeed: dict[str, Any], **arguments: Any) -> Any:
    AcceleratorState._reset_state()
    items = arguments.pop("items", None) or classification(80, torch.float32, seed=5)
    if "library" not in arguments:  # the check's pass would come between those that the cases count
        arguments.setdefault("sam_check", "off")
    made = trainer(directory, model, items, deepspeed=deepspeed, gradient_accumulation_steps=2, **arguments)
    made.weights_of = weights
    return made


def trained(*args: Any, **kwargs: Any) -> dict[str, Any]:
    made = zero_trainer(*args, **kwargs)
    made.train()
    return {"weights": made.weights, "log": made.state.log_history[:-1]}


def staged(*names: str, stages: tuple[int, ...] = STAGES) -> Callable[[Callable], Callable]:
    """Registers `function(directory, stage, name)` for every stage and name."""

    def register(function: Callable) -> Callable:
        def run(directory: Path, variant: str) -> Any:
            stage, _, name = variant.partition("-")
            return function(directory, int(stage), name)

        run.__module__, run.__name__ = function.__module__, function.__name__
        case(*[f"{stage}-{name}" for stage in stages for name in names])(run)
        return function

    return register


def dropout_and_norm() -> Net:
    return Net(lambda: nn.Sequential(nn.Dropout(0.4), nn.BatchNorm1d(8)))


def message(run: Callable[[], Any]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return "not refused"
