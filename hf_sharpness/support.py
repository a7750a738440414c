"""What the engine works with and what it refuses: parallelism, weight types, base optimizers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .methods import Method
from .vectors import is_sharded, local

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
    from torch.nn.parallel import DistributedDataParallel
except ImportError:  # a torch build without distributed support
    FSDPModule = FSDP1 = DistributedDataParallel = ()  # type: ignore[assignment, misc]

SCOPES = {
    "global": "the gradient of the whole effective batch, averaged over ranks",
    "device": "each rank's own accumulated gradient (m-sharpness, SAM's own setting on several devices)",
    "micro_batch": "every micro-batch alone, on every rank",
}
"""Whose gradient makes the perturbation."""


def base_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that steps, without the wrappers that Accelerate and DeepSpeed put around it."""
    base = inner = optimizer
    while (inner := getattr(inner, "optimizer", None)) is not None:
        if isinstance(inner, torch.optim.Optimizer):  # DeepSpeed's wrapper is none
            base = inner
    return base


def scales_per_coordinate(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer rescales every coordinate of its step (Adam and the like; everything but plain SGD)."""
    return not isinstance(optimizer, torch.optim.SGD)


def data_parallel_module(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel wrapper in a model, if it has one."""
    return next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)


def sharded_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that FSDP2 shards."""
    return [m for m in model.modules() if isinstance(m, FSDPModule)]


@contextlib.contextmanager
def gradients_unreduced(model: nn.Module) -> Iterator[None]:
    """Inside, a backward pass accumulates gradients without reducing them over ranks (DDP and FSDP2)."""
    wrapper = data_parallel_module(model)
    shards = sharded_modules(model)
    for module in shards:
        module.set_requires_gradient_sync(False, recurse=False)
    try:
        with wrapper.no_sync() if wrapper is not None else contextlib.nullcontext():
            yield
    finally:
        for module in shards:
            module.set_requires_gradient_sync(True, recurse=False)


def rank_groups(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[Any]:
    """The process groups whose ranks share one effective batch: DDP's, or those of the mesh that shards the weights.

    Args:
        model: the model, in DDP or not.
        parameters: the optimizer's; while FSDP2 has gathered a module, the model's own are not the sharded ones.
    """
    wrapper = data_parallel_module(model)
    if wrapper is not None:
        return [wrapper.process_group]
    sharded = next((p for p in parameters if is_sharded(p)), None)
    return [] if sharded is None else sharded.device_mesh.get_all_groups()


def mean_over_ranks(values: Tensor, groups: list[Any]) -> Tensor:
    """The mean of a tensor over the ranks of process groups that span a grid."""
    values = values.clone()
    for group in groups:
        torch.distributed.all_reduce(values, group=group)
        values /= torch.distributed.get_world_size(group)
    return values


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
            f"the trainable parameter {name} is stored in torch.bfloat16, where the term that mode='decoupled' adds "
            f"after the step is lost in rounding: use mode='coupled', or {FLOAT32_INSTEAD}"
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


def is_tensor_parallel(model: nn.Module, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether ranks share weights whose gradients they do not average: rounded at random, those would drift apart."""
    sharded = [p for p in parameters if is_sharded(p)]
    if not sharded_modules(model):
        return bool(sharded)
    return any("tp" in (p.device_mesh.mesh_dim_names or ()) for p in sharded)


def rounded_by_autocast(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the float32 parameters that autocast casts: the weights of linear layers, convolutions and the like."""
    optimized = {id(p) for p in parameters if p.dtype == torch.float32}
    rounded = {
        id(p): p
        for module in model.modules()
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for p in module.parameters(recurse=False)
        if id(p) in optimized and (p.ndim > 1 or isinstance(module, nn.Linear))
    }
    return list(rounded.values())


def are_bfloat16_numbers(parameters: list[nn.Parameter]) -> bool:
    """Whether most of the values are, as out of a bf16 checkpoint. Zeros, as adapters begin with, do not count."""
    found = total = 0
    for weights in local(parameters):
        nonzero = weights != 0
        found += int(((weights == weights.bfloat16()) & nonzero).sum())
        total += int(nonzero.sum())
    return found > total / 2


def check_supported(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scope: str,
    trainable: Sequence[tuple[str, Tensor]],
) -> None:
    """Raise a ValueError for a combination that would not be exact; the message says what to do instead."""
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r} is not valid: must be one of {', '.join(SCOPES)}")
    if scope not in method.scopes:
        raise ValueError(f"scope={scope!r} is not defined for {method.name}: use scope={method.scopes[0]!r}")
    if any(isinstance(m, FSDP1) for m in model.modules()):
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
    _check_precision(method, model, trainable)
    if method.adds_after_step:
        if any("lr" not in group for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has no learning rate in its param groups, which mode='decoupled' needs: "
                "use mode='coupled'"
            )
        if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
            raise ValueError(
                f"{type(optimizer).__name__} keeps the weights in a second form of its own, which mode='decoupled' "
                "would not move: use mode='coupled'"
            )
