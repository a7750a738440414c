"""Steps of the plain loop on one of several ranks, and what is seen of them there: weights, drift, collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import Batch, Net, classification, collate
from reference import Base
from specs_of_modes import BASE, MAX_NORM, named, rank_batches
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def step(model: nn.Module, optimizer: torch.optim.Optimizer, method: Any, batches: list[Batch]) -> None:
    """One optimizer step, every micro-batch a closure of its own; stock gradient accumulation without a method."""

    def closure(batch: Batch) -> torch.Tensor:
        loss = model(**batch)["loss"] / len(batches)
        loss.backward()
        return loss.detach()

    if method is None:
        with model.no_sync():
            for batch in batches[:-1]:
                closure(batch)
        closure(batches[-1])
    else:
        method.backward([lambda b=batch: closure(b) for batch in batches])
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    optimizer.zero_grad()


def rank() -> int:
    return torch.distributed.get_rank()


def whole(model: nn.Module) -> torch.Tensor:
    """All weights, gathered where they are sharded."""
    return torch.cat([full(p.detach()).reshape(-1) for p in model.parameters()]).clone()


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trained(model: nn.Module, name: str, steps: list[list[Batch]], base: Base = BASE) -> list[torch.Tensor]:
    """The weights after every step."""
    spec = named(name)
    optimizer = base.torch(model.parameters())
    method = spec.ours(model, optimizer)
    weights = []
    for batches in steps:
        step(model, optimizer, method, batches)
        weights.append(whole(model))
    return weights


def drifted(name: str, steps: int) -> torch.Tensor:
    """The weights after many steps of AdamW in float32, every rank on data of its own."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = named(name).ours(model, optimizer)
    batches = [collate(classification(4, torch.float32, seed=10 * rank() + n)) for n in range(10)]
    for number in range(steps):
        step(model, optimizer, method, [batches[number % 10]])
    return whole(model)


def collectives() -> int:
    return torch.distributed.group.WORLD._get_sequence_number_for_group()


WHERE = {"ascent": {1}, "replay": {2}, "both": {1, 2}}


def overflowing(model: nn.Module, network: Net, name: str, where: set[int]) -> dict[str, Any]:
    """With a real GradScaler: in the third step backward number n of this rank overflows, for n in `where`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = named(name).ours(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    weights, scales = [], []
    for number, (batch,) in enumerate(rank_batches(rank(), 5, 1)):
        start = network.middle.backwards
        bad = where if number == 2 else set()
        network.middle.on_backward = lambda n, g, s=start, bad=bad: g * (float("inf") if n - s in bad else 1.0)

        def closure(batch: Batch = batch) -> torch.Tensor:
            loss = model(**batch)["loss"]
            scaler.scale(loss).backward()
            return loss.detach()

        method.backward(closure)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        weights.append(whole(model))
        scales.append(scaler.get_scale())
    moments = [full(state["exp_avg"]) for state in optimizer.state.values()]
    steps = [int(full(state["step"])) for state in optimizer.state.values()]
    return {"weights": weights, "scales": scales, "moments": moments, "steps": steps}


def sharded(middle: Callable[[], nn.Module] = nn.PReLU, dtype: torch.dtype = torch.float64, **options: Any) -> Net:
    """Shards of different sizes, one of them empty (PReLU has a single weight)."""
    model = Net(middle).to(dtype)
    for layer in (model.first, model.last):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def message(make: Any) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return "not refused"
