"""Two gloo ranks, the plain loop: what Step offers to methods of one's own, in DDP and on FSDP2's shards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from launch import case
from models import Net
from own_methods import Alone, EveryOther, Everything, Unsteady
from specs_of_modes import BASE, rank_batches
from steps_on_ranks import full, rank, sharded, step, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hf_sharpness.loop import SharpnessAware
from hf_sharpness.methods import Method


def hybrid() -> nn.Module:
    """HSDP: two replicas, each of one shard."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    return fully_shard(Net(nn.PReLU).double(), mesh=mesh)


MODELS = {
    "ddp": lambda: DistributedDataParallel(Net(nn.PReLU).double()),
    "bucket_view": lambda: DistributedDataParallel(
        Net(nn.PReLU).double(), gradient_as_bucket_view=True, bucket_cap_mb=1e-4
    ),
    "fsdp2": sharded,
    "hsdp": hybrid,
}


def loop(model: nn.Module, method: Method, **options: Any) -> tuple[Any, Any]:
    optimizer = BASE.torch(model.parameters())
    return optimizer, SharpnessAware(method, model, optimizer, **options)


def gathered(vector: list[torch.Tensor], model: nn.Module) -> torch.Tensor:
    """A vector of this rank's shards, whole."""
    whole = []
    for tensor, parameter in zip(vector, model.parameters(), strict=True):
        if isinstance(parameter, DTensor):
            mesh, places = parameter.device_mesh, parameter.placements
            shape, stride = parameter.shape, parameter.stride()
            tensor = full(DTensor.from_local(tensor, mesh, places, shape=shape, stride=stride))
        whole.append(tensor.reshape(-1))
    return torch.cat(whole)


@case(*MODELS)
def everything(directory: Path, name: str) -> dict[str, Any]:
    """Weights after every step, and the directions drawn; though ranks have seeds of their own."""
    torch.manual_seed(7 if rank() == 1 else 5)
    model = MODELS[name]()
    optimizer, method = loop(model, Everything(), total_steps=5)
    weights = []
    for batches in rank_batches(rank(), 5, 2):
        step(model, optimizer, method, batches)
        weights.append(whole(model))
    return {"weights": weights, "directions": [gathered(d, model) for d in method.method.directions]}


@case(*MODELS)
def resumed(directory: Path, name: str) -> dict[str, Any]:
    """After three of six steps saved, and gone on with by new objects; every rank saves its own."""

    def fresh() -> tuple[Any, ...]:
        model = MODELS[name]()
        return model, *loop(model, Everything(), total_steps=6)

    steps = rank_batches(rank(), 6, 2)
    first = fresh()
    for batches in steps[:3]:
        step(*first, batches)
    file = directory / f"{name}-{rank()}.pt"
    torch.save(first[2].state_dict(), file)
    model_state = [full(p.detach()).clone() for p in first[0].parameters()]
    optimizer_state = first[1].state_dict()
    optimizer_state = {**optimizer_state, "state": {k: dict(v) for k, v in optimizer_state["state"].items()}}
    for state in optimizer_state["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].clone()
    for batches in steps[3:]:
        step(*first, batches)

    torch.manual_seed(99)
    again = fresh()
    for parameter, value in zip(again[0].parameters(), model_state, strict=True):
        if isinstance(parameter, DTensor):
            value = torch.distributed.tensor.distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.data.copy_(value)
    again[1].load_state_dict(optimizer_state)
    again[2].load_state_dict(torch.load(file, weights_only=True))
    for batches in steps[3:]:
        step(*again, batches)
    return {"through": whole(first[0]), "resumed": whole(again[0]), "file": str(file)}


@case("global", "device", "micro_batch")
def every_other(directory: Path, scope: str) -> list[torch.Tensor]:
    model = DistributedDataParallel(Net().double())
    optimizer, method = loop(model, EveryOther(), scope=scope)
    weights = []
    for batches in rank_batches(rank(), 6, 2):
        step(model, optimizer, method, batches)
        weights.append(whole(model))
    return weights


UNSTEADY = {
    "ranks differ": lambda: Unsteady(announced=1 + rank(), made=1 + rank()),
    "nonsense on one": lambda: Unsteady(announced=1 if rank() else None, made=1),
    "one more": lambda: Unsteady(announced=1, made=2),
    "one less": lambda: Unsteady(announced=2, made=1),
    "none": lambda: Unsteady(announced=1, made=0),
}


@case(*[f"{scope}-{name}" for scope in ("global", "device") for name in UNSTEADY])
def unsteady(directory: Path, name: str) -> dict[str, Any]:
    """How a method that breaks its word is stopped, and whether the weights are as before."""
    scope, _, name = name.partition("-")
    model = DistributedDataParallel(Net().double())
    optimizer, method = loop(model, UNSTEADY[name](), scope=scope)
    before = whole(model)
    try:
        step(model, optimizer, method, rank_batches(rank(), 1, 1)[0])
    except (ValueError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}", "clean": torch.equal(whole(model), before)}
    return {"error": "not stopped", "clean": False}


@case("global", "device")
def drawn(directory: Path, scope: str) -> torch.Tensor:
    model = DistributedDataParallel(Net().double())
    optimizer, method = loop(model, Alone(), scope=scope)
    step(model, optimizer, method, rank_batches(rank(), 1, 1)[0])
    return method.method.drawn


@case("fsdp2", "ddp")
def swapped(directory: Path, name: str) -> list[str]:
    """What a rank says to the state of the other."""
    model = MODELS[name]()
    optimizer, method = loop(model, Everything(), total_steps=5)
    step(model, optimizer, method, rank_batches(rank(), 1, 1)[0])
    torch.save(method.state_dict(), directory / f"swapped-{name}-{rank()}.pt")
    torch.distributed.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.load_state_dict(torch.load(directory / f"swapped-{name}-0.pt", weights_only=True))
    return [str(w.message) for w in caught if "starts anew" in str(w.message)]
