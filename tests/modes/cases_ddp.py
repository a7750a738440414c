"""Two gloo ranks, DistributedDataParallel and FSDP2 by hand, the plain loop (no transformers: a fast start)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from launch import case
from models import Batch, Net, Record, Saboteur, classification, collate
from reference import Base
from specs_of_modes import (
    ADAM,
    ALTERNATING,
    BASE,
    MAX_NORM,
    METHODS,
    PRECONDITIONED,
    SCOPED,
    SCOPED_ALTERNATING,
    Branching,
    named,
    rank_batches,
    without_decay,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
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


@case(*[spec.name for spec in [*SCOPED, *SCOPED_ALTERNATING]])
def ddp(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Net().double()), name, rank_batches(rank(), 5, 2))


@case(*[spec.name for spec in [*SCOPED, *SCOPED_ALTERNATING[:4]]])
def bucket_view(directory: Path, name: str) -> list[torch.Tensor]:
    model = DistributedDataParallel(Net().double(), gradient_as_bucket_view=True, bucket_cap_mb=1e-4)
    return trained(model, name, rank_batches(rank(), 5, 2))


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


def drifted(name: str, steps: int) -> torch.Tensor:
    """The weights after many steps of AdamW in float32, every rank on data of its own."""
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = named(name).ours(model, optimizer)
    batches = [collate(classification(4, torch.float32, seed=10 * rank() + n)) for n in range(10)]
    for number in range(steps):
        step(model, optimizer, method, [batches[number % 10]])
    return whole(model)


@case("stock", *[spec.name for spec in SCOPED if spec.method != "xsam"])
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


def collectives() -> int:
    return torch.distributed.group.WORLD._get_sequence_number_for_group()


WHERE = {"ascent": {1}, "replay": {2}, "both": {1, 2}}


@case(*[f"{where}-{spec.name}" for where in WHERE for spec in SCOPED])
def overflow(directory: Path, name: str) -> dict[str, Any]:
    where, _, name = name.partition("-")
    network = Net(Saboteur).double()
    return overflowing(DistributedDataParallel(network), network, name, WHERE[where] if rank() == 1 else set())


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


# FSDP2.


def sharded(middle: Callable[[], nn.Module] = nn.PReLU, dtype: torch.dtype = torch.float64, **options: Any) -> Net:
    """Shards of different sizes, one of them empty (PReLU has a single weight)."""
    model = Net(middle).to(dtype)
    for layer in (model.first, model.last):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


@case(*[spec.name for spec in [*METHODS, *ALTERNATING]])
def fsdp2(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(sharded(), name, rank_batches(rank(), 5, 2))


@case(*[f"ddp-{spec.name}" for spec in PRECONDITIONED], "fsdp2-global-wsam-preconditioned")
def adam(directory: Path, name: str) -> list[torch.Tensor]:
    wrapper, _, name = name.partition("-")
    model = sharded() if wrapper == "fsdp2" else DistributedDataParallel(Net(nn.PReLU).double())
    return trained(model, name, rank_batches(rank(), 5, 2), ADAM)


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


def message(make: Any) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return "not refused"


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
