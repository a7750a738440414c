"""The checks of numbers: the same training on the CPU, and written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_sharpness.measure.ball import sharpness
from hf_sharpness.measure.batches import Batches
from hf_sharpness.measure.surface import Surface

from .training import DEVICE, METHODS, SGD, Row, Watch, distance, draws, flat, items, judged, network, run

RHO = 0.05
CHEAPER: dict[str, dict[str, Any]] = {
    "SAM, fraction 1/2": {"optim": "sam", "sam_fraction": 0.5},
    "SAM, norms only": {"optim": "sam", "sam_target_modules": "norm"},
    "SAM, head only": {"optim": "sam", "sam_target_modules": "head", "gradient_accumulation_steps": 1},
    "SAM, from the half on": {"optim": "sam", "sam_start": 0.5},
    "SAM, 3 steps": {"optim": "sam", "sam_steps": 3},
    "ASAM": {"optim": "sam", "sam_adaptive": True, "sam_rho": 0.5},
    "XSAM, searching": {"optim": "xsam", "xsam_refresh": 2},
}


def against_cpu() -> Iterator[Row]:
    """In float32: eight steps of SGD here and on the CPU. A distance of rounding, in parts of the way."""
    start = flat(network())
    for name, method in {"stock": None, **METHODS, **CHEAPER}.items():
        off = distance(run(method, **SGD), run(method, use_cpu=True, **SGD), start)
        yield "float32, eight steps of SGD, against the CPU", name, judged(off, 1e-4)


def bases() -> Iterator[Row]:
    """The base optimizers that differ on a GPU, against the plain loop over parameters."""
    start = flat(network())
    decoupled = METHODS["WSAM decoupled"]
    plain = {"base": "adamw_torch", "optim_args": "foreach=False"}
    for what, other in {
        "AdamW fused": {"base": "adamw_torch_fused"},
        "AdamW, foreach": {"base": "adamw_torch", "optim_args": "foreach=True"},
        "AdamW, capturable": {"base": "adamw_torch", "optim_args": "capturable=True"},
        "fused SGD": {**SGD, "optim_args": "fused=True"},
    }.items():
        reference = plain if "AdamW" in what else SGD
        off = distance(run(decoupled, **other), run(decoupled, **reference), start)
        yield f"{what}, against one that is not", "WSAM decoupled", judged(off, 1e-3)


class Batched(Watch):
    """Keeps the inputs of every forward pass of a stock Trainer, and where the random numbers stood."""

    def attach(self, model: nn.Module) -> None:
        self.batches: list[tuple[dict[str, Tensor], Tensor]] = []

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.batches.append(({key: kwargs[key].clone() for key in ("input_ids", "labels")}, draws.get_rng_state()))

        model.register_forward_pre_hook(hook, with_kwargs=True)


def passes(model: nn.Module, pair: tuple[tuple[dict[str, Tensor], Tensor], ...]) -> None:
    """Both micro-batches, each with its masks; transformers adds up the means of this classifier's micro-batches."""
    for batch, state in pair:
        draws.set_rng_state(state)
        model(**batch).loss.backward()


def by_hand(batches: list[tuple[dict[str, Tensor], Tensor]], a: float) -> Tensor:
    """SGD (a = 0), SAM (1) or coupled WSAM as one would write it for this model; passes have the masks of the first."""
    model = network(dropout=0.1).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=SGD["learning_rate"])
    for pair in zip(batches[::2], batches[1::2], strict=True):
        passes(model, pair)
        weights = [p.detach().clone() for p in model.parameters()]
        first = [p.grad.clone() for p in model.parameters()]
        norm = torch.stack([g.norm() for g in first]).norm()
        with torch.no_grad():
            for p, g in zip(model.parameters(), first, strict=True):
                p += RHO * g / norm
        optimizer.zero_grad()
        passes(model, pair)
        with torch.no_grad():
            for p, w, g in zip(model.parameters(), weights, first, strict=True):
                p.copy_(w)
                p.grad.mul_(a).add_(g, alpha=1 - a)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


def masks() -> Iterator[Row]:
    """Dropout, accumulation and clipping: the Trainer against the loop written out by hand."""
    model, watch = network(dropout=0.1), Batched()
    watch.attach(model)
    same = {**SGD, "lr_scheduler_type": "constant"}
    run(None, model, watch, **same)
    start = flat(network())
    for name, method, a in (
        ("stock", None, 0.0),
        ("SAM", {**METHODS["SAM"], "sam_rho": RHO}, 1.0),
        ("WSAM coupled", {**METHODS["WSAM coupled"], "sam_rho": RHO, "wsam_gamma": 0.6}, 1.5),
    ):
        reference = by_hand(watch.batches, a)
        ours = run(method, network(dropout=0.1), **same).weights[-1]
        off = float((ours - reference).norm() / (reference - start).norm())
        yield "dropout .1, 2 micro-batches, clipping, against a loop by hand", name, judged(off, 1e-4)
    for name, method in METHODS.items():
        kept = run(method, network(dropout=0.1), gradient_checkpointing=True, **same)
        off = distance(kept, run(method, network(dropout=0.1), **same), start)
        yield "gradient checkpointing with dropout, against none", name, judged(off, 1e-4)


def measured() -> Iterator[Row]:
    """What ``hf-sharpness measure`` rests on, here and on the CPU."""
    found = []
    for device in ("cpu", DEVICE):
        model = network().to(device)

        def collate(rows: list[dict[str, Tensor]], device: str = device) -> dict[str, Tensor]:
            return {key: torch.stack([row[key] for row in rows]).to(device) for key in rows[0]}

        with Surface(model, Batches(items(), collate, 32)) as surface:
            loss, gradient = surface.gradient()
            found.append(sharpness(surface, loss, gradient, [RHO])[0].sharpness)
    off = abs(found[1] / found[0] - 1)
    yield "sharpness measured, against the CPU", f"rho {RHO:g}", judged(off, 1e-3)
