"""Two gloo ranks, FSDP2 by hand, the plain loop (no transformers: a fast start)."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from launch import case
from models import Net, Record, Saboteur
from specs_of_modes import ADAM, BASE, BETWEEN, METHODS, SCOPED, named, rank_batches
from steps_on_ranks import WHERE, message, overflowing, rank, sharded, step, trained, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard


@case(*[spec.name for spec in [*METHODS, *BETWEEN]])
def fsdp2(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(sharded(), name, rank_batches(rank(), 5, 2))


@case("global-wsam-preconditioned")
def adam(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(sharded(), name, rank_batches(rank(), 5, 2), ADAM)


@case(*[spec.name for spec in METHODS])
def fsdp2_gathered(directory: Path, name: str) -> list[torch.Tensor]:
    """Layers that stay gathered between forward and backward: the gathered copy must not outlive a perturbation."""
    return trained(sharded(reshard_after_forward=False), name, rank_batches(rank(), 5, 2))


@case(*[spec.name for spec in METHODS])
def fsdp2_bf16(directory: Path, name: str) -> list[torch.Tensor]:
    """Float32 weights, gathered in bf16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    steps = rank_batches(rank(), 5, 2)
    for batch in [batch for batches in steps for batch in batches]:
        batch["x"] = batch["x"].float()
    return trained(sharded(dtype=torch.float32, mp_policy=policy), name, steps)


@case(*[f"{where}-{spec.name}" for where in WHERE for spec in METHODS])
def fsdp2_overflow(directory: Path, name: str) -> dict[str, Any]:
    where, _, name = name.partition("-")
    network = sharded(Saboteur)
    return overflowing(network, network, name, WHERE[where] if rank() == 1 else set())


@case(*[spec.name for spec in METHODS])
def fsdp2_faults(directory: Path, name: str) -> list[bool]:
    """Whether the weights of this rank are those before the step, after an exception in every forward of a step."""
    model = sharded(Saboteur)
    optimizer = BASE.torch(model.parameters())
    method = named(name).ours(model, optimizer)
    batches = rank_batches(rank(), 1, 2)[0]
    clean = []
    for number in range(1, 7):  # two micro-batches, three passes: the step is checked until it has been made
        before, start = whole(model), model.middle.forwards

        def blow(n: int, bad: int = start + number) -> None:
            if n == bad:
                raise RuntimeError("boom")

        model.middle.on_forward = blow
        try:
            step(model, optimizer, method, batches)
        except RuntimeError as error:
            clean.append(str(error) == "boom" and torch.equal(whole(model), before))
    # What came of the failed steps is gone: the same step again is the one of a run without them.
    twin = sharded(Saboteur)
    other = BASE.torch(twin.parameters())
    step(twin, other, named(name).ours(twin, other), batches)
    model.middle.on_forward = lambda n: None
    step(model, optimizer, method, batches)
    clean.append(torch.equal(whole(model), whole(twin)))
    return clean


@case(*[spec.name for spec in METHODS])
def fsdp2_memory(directory: Path, name: str) -> float:
    """Bytes of all tensors alive before a replay's forward beyond those before the first, in shards of the model."""
    model = Net().double()
    model.last = nn.Linear(8, 5000, dtype=torch.float64)  # dwarfs the activations
    fully_shard(model, reshard_after_forward=True)
    shard = sum(p.to_local().numel() * 8 for p in model.parameters())
    seen = Record()

    def count(*args: Any) -> None:
        if len(seen.items) < 2:
            storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
            seen.items.append(sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes() > 20_000}.values()))

    optimizer = BASE.torch(model.parameters())
    method = named(name).ours(model, optimizer)
    first, second = rank_batches(rank(), 2, 1)
    step(model, optimizer, method, first)
    model.register_forward_pre_hook(count, prepend=True)
    step(model, optimizer, method, second)
    return (seen.items[1] - seen.items[0]) / shard


@case(*[spec.name for spec in METHODS])
def fsdp2_resume(directory: Path, name: str) -> dict[str, Any]:
    """Saved with torch.distributed.checkpoint after three steps, and gone on with from there by new objects."""

    def fresh() -> tuple[Any, ...]:
        model = sharded()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, named(name).ours(model, optimizer)

    model, optimizer, method = fresh()
    steps = rank_batches(rank(), 6, 2)
    for batches in steps[:3]:
        step(model, optimizer, method, batches)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(state, checkpoint_id=directory / f"dcp-{name}")
    extra = method.state_dict()
    for batches in steps[3:]:
        step(model, optimizer, method, batches)

    again, optimizer, method = fresh()
    state = dict(zip(("model", "optimizer"), get_state_dict(again, optimizer), strict=True))
    dcp.load(state, checkpoint_id=directory / f"dcp-{name}")
    set_state_dict(again, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    method.load_state_dict(extra)
    for batches in steps[3:]:
        step(again, optimizer, method, batches)
    return {"through": whole(model), "resumed": whole(again)}


@case(*[spec.name for spec in SCOPED if not spec.name.startswith("global")])
def fsdp2_refused(directory: Path, name: str) -> str:
    model = sharded()
    return message(lambda: named(name).ours(model, BASE.torch(model.parameters())))


@case("scope", "bf16")
def fsdp2_evaluated(directory: Path, what: str) -> str:
    """What a method says to a model that an evaluation has left gathered (in bf16, or with plain parameters)."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if what == "bf16" else None)
    model = fully_shard(Net(), mp_policy=policy)
    optimizer = BASE.torch(model.parameters())
    with torch.no_grad():
        model(x=torch.zeros(2, 6))
    return message(lambda: named("global-wsam-decoupled" if what == "bf16" else "device-sam").ours(model, optimizer))


@case(*[spec.name for spec in METHODS])
def fsdp1_refused(directory: Path, name: str) -> str:
    model = FullyShardedDataParallel(Net().double(), device_id=torch.device("cpu"))
    return message(lambda: named(name).ours(model, BASE.torch(model.parameters())))
