"""Two gloo ranks, DistributedDataParallel, the plain loop (no transformers: a fast start)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from launch import case
from models import Net, Saboteur
from specs_of_modes import (
    ADAM,
    BASE,
    PRECONDITIONED,
    SCOPED,
    SCOPED_BETWEEN,
    Branching,
    named,
    rank_batches,
    without_decay,
)
from steps_on_ranks import WHERE, collectives, drifted, overflowing, rank, step, trained
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@case(*[spec.name for spec in [*SCOPED, *SCOPED_BETWEEN]])
def ddp(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Net().double()), name, rank_batches(rank(), 5, 2))


@case(*[spec.name for spec in [*SCOPED, *SCOPED_BETWEEN[:4]]])
def bucket_view(directory: Path, name: str) -> list[torch.Tensor]:
    model = DistributedDataParallel(Net().double(), gradient_as_bucket_view=True, bucket_cap_mb=1e-4)
    return trained(model, name, rank_batches(rank(), 5, 2))


@case(*[spec.name for spec in PRECONDITIONED])
def adam(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Net(nn.PReLU).double()), name, rank_batches(rank(), 5, 2), ADAM)


@case(*[spec.name for spec in SCOPED])
def uneven(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Net().double()), name, rank_batches(rank(), 5, 1, size=8 - 5 * rank()))


@case(*[spec.name for spec in SCOPED])
def unused(directory: Path, name: str) -> list[torch.Tensor]:
    """The extra layer is used by rank 1 in the second half of the run only, and by rank 0 never."""
    model = DistributedDataParallel(Branching().double(), find_unused_parameters=True)
    steps = rank_batches(rank(), 6, 1)
    for number, (batch,) in enumerate(steps):
        batch["branch"] = torch.tensor(rank() == 1 and number >= 3)
    return trained(model, name, steps, without_decay(BASE))


@case(*[spec.name for spec in SCOPED])
def replicas(directory: Path, name: str) -> torch.Tensor:
    return drifted(name, 30)


@case("stock", *[spec.name for spec in SCOPED if spec.method != "xsam"], usually="")
def all_reduces(directory: Path, name: str) -> int:
    """How many collectives (gloo numbers them) two steps of three micro-batches make, with several gradient buckets."""
    model = DistributedDataParallel(Net().double(), bucket_cap_mb=1e-4)
    optimizer = BASE.torch(model.parameters())
    method = None if name == "stock" else named(name).ours(model, optimizer)
    steps = rank_batches(rank(), 4, 3)
    for batches in steps[:2]:  # DDP rebuilds its buckets after the first
        step(model, optimizer, method, batches)
    before = collectives()
    for batches in steps[2:]:
        step(model, optimizer, method, batches)
    return collectives() - before


@case(*[f"{where}-{spec.name}" for where in WHERE for spec in SCOPED])
def overflow(directory: Path, name: str) -> dict[str, Any]:
    where, _, name = name.partition("-")
    network = Net(Saboteur).double()
    return overflowing(DistributedDataParallel(network), network, name, WHERE[where] if rank() == 1 else set())


@case("global-sam", "device-wsam-coupled", "global-wsam-decoupled", "global-xsam")
def compiled(directory: Path, name: str) -> list[torch.Tensor]:
    """torch.compile around DDP."""
    wrapped = DistributedDataParallel(Net().double())
    return trained(torch.compile(wrapped, backend="aot_eager"), name, rank_batches(rank(), 5, 1))


@case(*[spec.name for spec in SCOPED])
def static_graph(directory: Path, name: str) -> list[torch.Tensor] | str:
    """The weights, or how it was refused."""
    model = DistributedDataParallel(Net().double(), static_graph=True)
    try:
        return trained(model, name, rank_batches(rank(), 5, 1))
    except ValueError as error:
        return str(error)


@case(*[spec.name for spec in SCOPED])
def not_a_number(directory: Path, name: str) -> torch.Tensor:
    """Without a scaler a NaN on one rank reaches all of them, as in stock DDP; nobody waits for anybody."""
    network = Net(Saboteur).double()
    model = DistributedDataParallel(network)
    network.middle.on_backward = lambda n, g: g * (float("nan") if n == 3 and rank() == 1 else 1.0)
    return trained(model, name, rank_batches(rank(), 4, 1))[-1]
