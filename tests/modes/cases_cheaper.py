"""Two gloo ranks, cheaper steps: the correction from a part of the batch under DDP and FSDP2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cases_trainer
import steps_on_ranks
import torch
from cases_trainer import LLAMA, SGD, WRAPPED, load, texts
from cases_trainer import trained as by_trainer
from launch import CASES, case
from models import Batch, Net, classification
from specs_of_modes import BASE, MAX_NORM, METHODS, PARTS, named, rank_batches
from steps_on_ranks import collectives, rank, sharded, step, whole
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

CASES.pop(cases_trainer.__name__)
NAMES = [spec.name for spec in PARTS]
GLOBAL = [name for name in NAMES if name.startswith("global")]


def closure(model: nn.Module, batch: Batch, parts: int = 1) -> torch.Tensor:
    loss = model(**batch)["loss"] / parts
    loss.backward()
    return loss.detach()


def trained(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The weights after steps of four micro-batches."""
    return steps_on_ranks.trained(model, name, rank_batches(rank(), 4, 4))


@case(*NAMES)
def ddp(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Net().double()), name)


@case(*NAMES)
def bucket_view(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Net().double(), gradient_as_bucket_view=True, bucket_cap_mb=1e-4), name)


class Reading(Net):
    """Looks at its gradients in every forward, so that a pass has to begin without any."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _ = [p.grad for p in self.parameters()]
        return super().forward(*args, **kwargs)


@case(*NAMES)
def reading(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(DistributedDataParallel(Reading().double()), name)


@case(*GLOBAL)
def hook(directory: Path, name: str) -> list[torch.Tensor]:
    """A communication hook with a memory, which has every pass reduced without what it adds to."""
    model = DistributedDataParallel(Net().double())
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=1_000)  # compresses nothing in so few steps
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return trained(model, name)


@case(*GLOBAL)
def all_reduces(directory: Path, name: str) -> int:
    """How many collectives two steps make, with two gradient buckets."""
    model = DistributedDataParallel(Net().double(), bucket_cap_mb=1e-4)
    optimizer = BASE.torch(model.parameters())
    method = named(name).ours(model, optimizer)
    steps = rank_batches(rank(), 4, 4)
    for batches in steps[:2]:  # DDP rebuilds its buckets after the first
        step(model, optimizer, method, batches)
    before = collectives()
    for batches in steps[2:]:
        step(model, optimizer, method, batches)
    return collectives() - before


@case(*GLOBAL)
def fsdp2(directory: Path, name: str) -> list[torch.Tensor]:
    return trained(sharded(), name)


def by_examples(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The same steps without accumulation: the four micro-batches are one, and its first half is gone through again."""
    optimizer = BASE.torch(model.parameters())
    method = named(name).ours(model, optimizer)
    weights = []
    for batches in rank_batches(rank(), 4, 4):
        whole_batch = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        part = {key: value[:8] for key, value in whole_batch.items()}
        method.backward(lambda b=whole_batch: closure(model, b), part=lambda b=part: closure(model, b))
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(whole(model))
    return weights


@case(*NAMES)
def ddp_examples(directory: Path, name: str) -> list[torch.Tensor]:
    return by_examples(DistributedDataParallel(Net().double(), gradient_as_bucket_view=True), name)


@case(*GLOBAL)
def fsdp2_examples(directory: Path, name: str) -> list[torch.Tensor]:
    return by_examples(sharded(), name)


@case(*GLOBAL)
def trainer_examples(directory: Path, name: str) -> dict[str, Any]:
    """Each rank's four micro-batches of a step, which alternate between the ranks, as one batch of 16."""
    arguments = named(name).arguments() | SGD
    items = classification(128, seed=5)
    places = [8 * s + 2 * m + r for s in range(4) for r in range(2) for m in range(4)]
    items = [item for place in places for item in items[4 * place : 4 * place + 4]]
    return by_trainer(directory, Net().double(), items, per_device_train_batch_size=16, max_steps=4, **arguments)


def near_the_end(name: str, model: nn.Module) -> list[torch.Tensor]:
    """The weights after steps that perturb the last layer alone, without clipping."""
    spec = named(name)
    optimizer = BASE.torch(model.parameters())
    method = replace(spec, settings=spec.settings | {"target_modules": "last"}).ours(model, optimizer)
    weights = []
    for batches in rank_batches(rank(), 4, 2):
        method.backward([lambda b=batch: closure(model, b, 2) for batch in batches])
        optimizer.step()
        optimizer.zero_grad()
        weights.append(whole(model))
    return weights


@case(*[spec.name for spec in METHODS])
def ddp_targets(directory: Path, name: str) -> list[torch.Tensor]:
    return near_the_end(name, DistributedDataParallel(Net().double(), gradient_as_bucket_view=True))


@case(*[spec.name for spec in METHODS])
def fsdp2_targets(directory: Path, name: str) -> list[torch.Tensor]:
    return near_the_end(name, sharded())


@case(*GLOBAL)
def trainer_ddp(directory: Path, name: str) -> dict[str, Any]:
    """The same batches as `rank_batches` gives each rank."""
    arguments = named(name).arguments() | SGD
    items = classification(128, seed=5)
    return by_trainer(directory, Net().double(), items, gradient_accumulation_steps=4, max_steps=4, **arguments)


@case(*[f"{wrapper}-{name}" for wrapper in WRAPPED for name in GLOBAL], usually="-(ddp|fsdp2)-.*decoupled")
def llama_by(directory: Path, name: str) -> dict[str, Any]:
    wrapper, _, method = name.partition("-")
    arguments = LLAMA | {"gradient_accumulation_steps": 4, "max_steps": 3} | named(method).arguments()
    return by_trainer(directory, load(directory, **WRAPPED[wrapper]), texts(), **arguments)
