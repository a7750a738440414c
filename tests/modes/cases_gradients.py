"""Two gloo ranks: gradients of earlier backward passes, hooks with a memory, routing that depends on data, `Join`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from launch import case
from models import Batch, Net, collate
from models import classification as items
from specs_of_modes import SCOPED, named, rank_batches
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

NAMES = [spec.name for spec in SCOPED]
DEVICE = [name for name in NAMES if name.startswith("device")]
GLOBAL = [name for name in NAMES if name.startswith("global")]
LR = 0.1
MEMORY = [collate(items(4, seed=20 + rank)) for rank in range(2)]


def rank() -> int:
    return dist.get_rank()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def averaged(gradients: list[Tensor]) -> list[Tensor]:
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return gradients


def plain_gradient(model: nn.Module, batches: list[Batch]) -> list[Tensor]:
    """This rank's own, of the mean over the batches."""
    params = list(model.parameters())
    loss = sum(model(**batch)["loss"] for batch in batches) / len(batches)
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]


def closure(model: nn.Module, batch: Batch, parts: int = 1) -> Callable[[], Tensor]:
    def run() -> Tensor:
        loss = model(**batch)["loss"] / parts
        loss.backward()
        return loss.detach()

    return run


def method_for(name: str, model: nn.Module, rho: float | None = None) -> tuple[Any, torch.optim.Optimizer]:
    spec = named(name)
    if rho is not None:
        spec = copy.deepcopy(spec)
        spec.settings["rho"] = rho
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    return spec.ours(model, optimizer), optimizer


# Gradients that are there when a step begins.


@case(*[f"{kind}-{views}-{name}" for name in NAMES for kind in ("reduced", "own") for views in ("plain", "views")])
def earlier(directory: Path, variant: str) -> list[Tensor]:
    """The step's movement with a memory batch's gradient in p.grad, without it, and that gradient's own mean."""
    kind, views, name = variant.split("-", 2)
    moved = []
    for with_memory in (True, False):
        model = DistributedDataParallel(
            Net().double(), gradient_as_bucket_view=views == "views", bucket_cap_mb=1e-4 if views == "views" else 25
        )
        method, optimizer = method_for(name, model)
        start = flat(model)
        batches = rank_batches(rank(), 1, 2)[0]
        if with_memory:
            with model.no_sync() if kind == "own" else nullcontext():
                closure(model, MEMORY[rank()])()
        method.backward([closure(model, batch, 2) for batch in batches])
        optimizer.step()
        moved.append(flat(model) - start)
    memory = averaged(plain_gradient(Net().double(), [MEMORY[rank()]]))
    return [*moved, torch.cat([g.reshape(-1) for g in memory])]


@case(*[f"{rho}-{name}" for name in GLOBAL for rho in (0.0, 0.2)])
def one_call_for_each(directory: Path, variant: str) -> list[Tensor]:
    """`method.backward` for each micro-batch, all but the last in `no_sync`: the weights, and stock's."""
    rho, name = variant.split("-", 1)
    models = []
    for with_method in (True, False):
        model = DistributedDataParallel(Net().double())
        method, optimizer = method_for(name, model, float(rho))
        for batches in rank_batches(rank(), 3, 2):
            for number, batch in enumerate(batches):
                with model.no_sync() if number == 0 else nullcontext():
                    run = closure(model, batch, 2)
                    method.backward(run) if with_method else run()
            optimizer.step()
            optimizer.zero_grad()
        models.append(flat(model))
    return models


@case()
def unreduced_fsdp2(directory: Path) -> str:
    """A backward pass whose gradients FSDP2 keeps whole, before the step's own."""
    model = Net().double()
    fully_shard(model.first)
    fully_shard(model)
    method, _ = method_for("global-sam", model)
    for module in (model, model.first):
        module.set_requires_gradient_sync(False, recurse=False)
    closure(model, MEMORY[rank()])()
    for module in (model, model.first):
        module.set_requires_gradient_sync(True, recurse=False)
    try:
        method.backward(closure(model, MEMORY[rank()]))
    except RuntimeError as error:
        return str(error)
    return "not refused"


# Communication hooks with a memory.


def compressed() -> DistributedDataParallel:
    model = DistributedDataParallel(Net().double())
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=1, start_powerSGD_iter=2, min_compression_rate=0.5, use_error_feedback=True
    )
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return model


@case(*[name for name in NAMES if not name.startswith("micro") and name != "device-wsam-decoupled"])
def power_sgd_at_rho_0(directory: Path, name: str) -> list[Tensor]:
    """The weights after every step, and stock's."""
    runs = []
    for with_method in (True, False):
        model = compressed()
        method, optimizer = method_for(name, model, 0.0)
        weights = []
        for (batch,) in rank_batches(rank(), 8, 1):
            run = closure(model, batch)
            method.backward(run) if with_method else run()
            optimizer.step()
            optimizer.zero_grad()
            weights.append(flat(model))
        runs.append(torch.stack(weights))
    return runs


@case()
def power_sgd_by_hand(directory: Path) -> list[Tensor]:
    """SAM, both passes compressed from the same memory: the weights after every step, and those by hand."""
    model = compressed()
    method, optimizer = method_for("global-sam", model)
    twin = compressed()
    (_, state), rho = twin._comm_hooks[0], named("global-sam").settings["rho"]
    runs: list[list[Tensor]] = [[], []]
    for (batch,) in rank_batches(rank(), 6, 1):
        method.backward(closure(model, batch))
        optimizer.step()
        optimizer.zero_grad()
        runs[0].append(flat(model))

        params = list(twin.parameters())
        memory = {
            name: copy.deepcopy(getattr(state, name))
            for name in ("error_dict", "p_memory_dict", "q_memory_dict", "iter", "rng")
        }
        closure(twin, batch)()
        size = torch.sqrt(sum(p.grad.square().sum() for p in params))
        start = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p.add_(rho * p.grad / size)
                p.grad = None
        for attribute, value in memory.items():
            setattr(state, attribute, value)
        closure(twin, batch)()
        with torch.no_grad():
            for p, w in zip(params, start, strict=True):
                p.copy_(w - LR * p.grad)
                p.grad = None
        runs[1].append(flat(twin))
    return [torch.stack(run) for run in runs]


# Routing that depends on data.


class Routed(Net):
    """Sends every micro-batch to the expert that the weights choose for it, or to both."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, labels: Tensor) -> Batch:
        h = torch.tanh(self.first(x))
        chosen = int((h.sum() * 3).abs() * 7) % 4
        for index, expert in enumerate(self.experts):
            if index == chosen:
                h = h + expert(h)
        return {"loss": nn.functional.cross_entropy(self.last(h), labels)}


@case(*[f"{accumulation}-{name}" for name in DEVICE for accumulation in (1, 3)])
def routing(directory: Path, variant: str) -> list[Tensor]:
    """The weights after every step, and those by hand: every rank climbs alone, the gradients are averaged."""
    accumulation, name = variant.split("-", 1)
    spec = named(name)
    model, twin = Routed().double(), Routed().double()
    model = DistributedDataParallel(model, find_unused_parameters=True)
    method, optimizer = method_for(name, model)
    runs: list[list[Tensor]] = [[], []]
    for batches in rank_batches(rank(), 6, int(accumulation)):
        method.backward([closure(model, batch, len(batches)) for batch in batches])
        optimizer.step()
        optimizer.zero_grad()
        runs[0].append(flat(model))

        params = list(twin.parameters())
        g = plain_gradient(twin, batches)
        size = torch.sqrt(sum(x.square().sum() for x in g))
        start = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, x in zip(params, g, strict=True):
                p.add_(spec.settings["rho"] * x / size)
        above = plain_gradient(twin, batches)
        gamma = spec.settings.get("gamma", 0.5)
        a = gamma / (1 - gamma)
        handed = averaged([(1 - a) * x + a * y for x, y in zip(g, above, strict=True)])  # decoupled: the same for SGD
        with torch.no_grad():
            for p, w, h in zip(params, start, handed, strict=True):
                p.copy_(w - LR * h)
        runs[1].append(flat(twin))
    return [torch.stack(run) for run in runs]


# `Join`.


@case(*NAMES, usually="")
def join(directory: Path, name: str) -> list[Any]:
    """Rank 1 has two batches less: what is refused, and the weights, here and without a method at rho 0."""
    runs = []
    for with_method in (True, False):
        model = DistributedDataParallel(Net().double())
        method, optimizer = method_for(name, model, 0.0)
        batches = [batch for (batch,) in rank_batches(rank(), 5, 1)][: 5 - 2 * rank()]
        error = ""
        try:
            with Join([model]):
                for batch in batches:
                    run = closure(model, batch)
                    method.backward(run) if with_method else run()
                    optimizer.step()
                    optimizer.zero_grad()
        except RuntimeError as caught:
            error = str(caught)
        runs += [error, flat(model)]
        if error:
            break
    return runs
