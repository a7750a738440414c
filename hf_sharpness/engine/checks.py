"""What sharpness-aware steps cannot be exact with, refused with a remedy before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..methods import Method
from ..vectors import is_sharded
from .deepspeed.config import is_engine
from .elsewhere import check_optimizer
from .optimizers import maximizes
from .parallel import data_parallel_module, is_tensor_parallel, uses_fsdp1
from .preconditioner import has_known_preconditioner, refusal

FLOAT32_INSTEAD = (
    "load the model in float32 (from_pretrained(..., dtype=torch.float32)) and train with bf16 or fp16 autocast "
    "(--bf16 or --fp16), which keeps its speed"
)


def _check_precision(method: Method, model: nn.Module, trainable: Sequence[tuple[str, Tensor]]) -> None:
    """Weights stored in bfloat16 are rounded stochastically when they move, with a warning; float16 has no such way."""
    if method.is_plain:
        return
    stored = {parameter.dtype: name for name, parameter in reversed(trainable)}
    if torch.float16 in stored:
        raise ValueError(
            f"the trainable parameter {stored[torch.float16]} is stored in torch.float16: a perturbation is lost in "
            f"rounding and underflow. Instead, {FLOAT32_INSTEAD}"
        )
    name = stored.get(torch.bfloat16)
    if name is None:
        return
    if method.adds_after_step:
        raise ValueError(
            f"the trainable parameter {name} is stored in torch.bfloat16, where what "
            f"{method.after_step_setting({})} adds after the step is lost in rounding: use "
            f"{method.after_step_remedy({})}, or {FLOAT32_INSTEAD}"
        )
    if is_tensor_parallel(model, [p for _, p in trainable]):
        raise ValueError(
            f"the trainable parameter {name} is stored in torch.bfloat16: the ranks of a tensor-parallel group would "
            f"round the weights that they share differently. Instead, {FLOAT32_INSTEAD}"
        )
    warnings.warn(
        f"the trainable parameter {name} is stored in torch.bfloat16: perturbed weights are rounded stochastically, "
        "which keeps the perturbation but makes it longer than rho by noise, and the base optimizer's own small steps "
        f"are lost in rounding. For exact steps, {FLOAT32_INSTEAD}",
        stacklevel=2,
    )


def check_own_loop(model: nn.Module) -> None:
    """Raise a ValueError for a model that only the Trainer can train."""
    if is_engine(model):
        raise ValueError(
            "a loop of your own does not run under DeepSpeed, which steps within accelerator.backward: use "
            "hf_sharpness.Trainer, or FSDP2"
        )


def check_supported(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scope: str,
    trainable: Sequence[tuple[str, Tensor]],
) -> None:
    """Raise a ValueError for a combination that would not be exact; the message says what to do instead."""
    if scope not in method.scopes:
        raise ValueError(f"scope={scope!r} is not defined for {method.name}: use scope={method.scopes[0]!r}")
    if uses_fsdp1(model):
        raise ValueError(
            "FSDP1 (FullyShardedDataParallel) is not supported: its flattened parameters hide the weights from the "
            "perturbation. Use FSDP2 (fsdp_version: 2 in the accelerate config)"
        )
    wrapper = data_parallel_module(model)
    if scope != "global" and wrapper is not None and wrapper.static_graph:
        raise ValueError(
            f"scope={scope!r} needs a first backward pass that is not reduced over ranks, which DDP with "
            "static_graph=True does not allow: use scope='global', or static_graph=False (--ddp_static_graph false)"
        )
    if scope != "global" and any(is_sharded(p) for _, p in trainable):
        raise ValueError(
            f"scope={scope!r} needs every rank to hold all weights, but these are sharded (FSDP2): use scope='global'"
        )
    for name, parameter in trainable:
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the parameter {name} has no shape yet (a lazy module), so that it could not be put back after a "
                "perturbation: run the model on a batch before, which gives it one"
            )
    _check_precision(method, model, trainable)
    if not method.is_plain:
        check_optimizer(optimizer)
        maximizes(optimizer)
    if method.adds_after_step:
        setting, remedy = method.after_step_setting({}), method.after_step_remedy({})
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has no learning rate in its param groups, which {setting} needs: give it "
                f"one, or use {remedy}"
            )
        if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
            raise ValueError(
                f"{type(optimizer).__name__} keeps the weights in a second form of its own, which {setting} would not "
                f"move: use {remedy}"
            )
        if method.preconditions_term and not has_known_preconditioner(optimizer):
            raise ValueError(refusal(type(optimizer).__name__, setting, remedy))
