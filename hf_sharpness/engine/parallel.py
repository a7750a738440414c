"""How a model is spread over processes: DistributedDataParallel, FSDP2, tensor parallelism."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..vectors import is_sharded

try:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
    from torch.nn.parallel import DistributedDataParallel
except ImportError:  # a torch build without distributed support
    FSDPModule = FSDP1 = DistributedDataParallel = ()  # type: ignore[assignment, misc]


def data_parallel_module(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel wrapper in a model, if it has one."""
    return next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
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


@contextlib.contextmanager
def shards_reduced(model: nn.Module) -> Iterator[None]:
    """Inside, FSDP2 reduces the gradients of a backward pass, whatever holds around it."""
    groups = [group for module in sharded_modules(model) for group in _parameter_groups(module)]
    before = [(group, group.reduce_grads, group.all_reduce_grads) for group in groups]
    for group in groups:
        group.reduce_grads = group.all_reduce_grads = True
    try:
        yield
    finally:
        for group, reduces, all_reduces in before:
            group.reduce_grads, group.all_reduce_grads = reduces, all_reduces


def unreduced_gradients(model: nn.Module) -> Iterator[Tensor]:
    """The gradients that FSDP2 has accumulated without reducing them over ranks: those are not in ``p.grad``."""
    for module in sharded_modules(model):
        for group in _parameter_groups(module):
            for parameter in group.fsdp_params:
                unsharded = getattr(parameter, "_unsharded_param", None)
                waiting = (parameter.unsharded_accumulated_grad, None if unsharded is None else unsharded.grad)
                yield from (gradient for gradient in waiting if gradient is not None)


def drop_unreduced_gradients(model: nn.Module) -> None:
    """Have FSDP2 forget them: its next backward pass that reduces would add them to its own."""
    for module in sharded_modules(model):
        for group in _parameter_groups(module):
            for parameter in group.fsdp_params:
                parameter.unsharded_accumulated_grad = None
                if hasattr(parameter, "_unsharded_param"):
                    parameter._unsharded_param.grad = None


def _parameter_groups(module: FSDPModule) -> list[Any]:
    """FSDP2's groups of the parameters that it gathers together. Private in torch: nothing public tells."""
    state: Any = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [state._fsdp_param_group] if state._fsdp_param_group else []  # older versions: at most one


def rank_groups(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[Any]:
    """The process groups whose ranks share one effective batch: DDP's, or those of the mesh that shards the weights.

    Args:
        model: the model, in DDP or not.
        parameters: the optimizer's; while FSDP2 has gathered a module, the model's own are not the sharded ones.
    """
    wrapper = data_parallel_module(model)
    if wrapper is not None:
        return [wrapper.process_group]
    sharded: Any = next((p for p in parameters if is_sharded(p)), None)
    return [] if sharded is None else sharded.device_mesh.get_all_groups()


def mean_over_ranks(values: Tensor, groups: list[Any]) -> Tensor:
    """The mean of a tensor over the ranks of process groups that span a grid."""
    values = values.clone()
    for group in groups:
        torch.distributed.all_reduce(values, group=group)
        values /= torch.distributed.get_world_size(group)
    return values


def largest_over_ranks(values: Tensor, groups: list[Any]) -> Tensor:
    """Element by element the largest on any rank of the process groups; overwrites the values."""
    for group in groups:
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
    return values


def any_rank(flag: bool, groups: list[Any], device: torch.device) -> bool:
    """Whether the flag is set on any rank of the process groups."""
    return bool(largest_over_ranks(torch.tensor(float(flag), device=device), groups)) if groups else flag


def is_tensor_parallel(model: nn.Module, parameters: Iterable[Tensor]) -> bool:
    """Whether ranks share weights whose gradients they do not average: rounded at random, those would drift apart."""
    sharded: list[Any] = [p for p in parameters if is_sharded(p)]
    if not sharded_modules(model):
        return bool(sharded)
    return any("tp" in (p.device_mesh.mesh_dim_names or ()) for p in sharded)


def uses_fsdp1(model: nn.Module) -> bool:
    """Whether a module in it is FSDP1's, with flattened parameters."""
    return any(isinstance(module, FSDP1) for module in model.modules())
