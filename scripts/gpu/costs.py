"""What a step costs on a GPU, in time and memory, as ratios to the base optimizer alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import hf_sharpness

from .training import METHODS, Row, network


def costs(device: str = "cuda", width: int = 768, layers: int = 12, rounds: int = 20) -> Iterator[Row]:
    """Time of a step and peak memory under bf16 autocast, as ratios to AdamW alone; the methods take turns."""
    builders: dict[str, Callable[[nn.Module, Any], Any] | None] = {
        "stock": None,
        "SAM": hf_sharpness.SAM,
        "WSAM coupled": lambda m, o: hf_sharpness.WSAM(m, o, mode="coupled"),
        "WSAM decoupled": lambda m, o: hf_sharpness.WSAM(m, o, mode="decoupled"),
        "XSAM": lambda m, o: hf_sharpness.XSAM(m, o, alpha=1.2),
    }
    length, batch = (128, 32) if device == "cuda" else (16, 2)
    inputs = {
        "input_ids": torch.randint(0, 64, (batch, length), device=device),
        "labels": torch.randint(0, 8, (batch,), device=device),
    }
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for name, build in builders.items():  # one model at a time, so that the peak is its own
        model = network(width=width, layers=layers).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        method = build(model, optimizer) if build is not None else None
        weights = sum(p.numel() * p.element_size() for p in model.parameters())

        def closure(model: nn.Module = model) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                loss = model(**inputs).loss
            loss.backward()
            return loss.detach()

        times[name] = []
        for turn in range(rounds + 3):
            synchronise(device)
            if turn == 3:
                reset_peak(device)
            begun = time.perf_counter()
            closure() if method is None else method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
            synchronise(device)
            if turn >= 3:
                times[name].append(time.perf_counter() - begun)
        peaks[name] = peak(device) / weights
        del model, optimizer, method, closure
    base = statistics.median(times["stock"])
    for name in METHODS:
        ratio = statistics.median(times[name]) / base
        extra = peaks[name] - peaks["stock"]
        label = f"BERT {layers} x {width}, batch {batch} x {length}, bf16: step time, peak memory"
        yield label, name, f"{ratio:.2f} x stock ({base * 1e3:.1f} ms); + {extra:.2f} x the weights' bytes"


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0.0
