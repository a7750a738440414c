"""What a sharpness-aware step costs: time as a ratio to the base optimizer's step, memory in multiples of the weights.

    python scripts/cost.py [--device cuda] [--rounds 20]

The methods take turns, one step each, so that a machine whose speed drifts treats all alike; the ratio of each turn is
taken against the same turn's base step, and the median over turns is printed.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_sharpness import SAM, WSAM, XSAM

METHODS: dict[str, Callable | None] = {
    "base (AdamW)": None,
    "SAM": SAM,
    "SAM, 2 steps": lambda m, o: SAM(m, o, steps=2),
    "ASAM": lambda m, o: SAM(m, o, rho=0.5, adaptive=True),
    "WSAM coupled": lambda m, o: WSAM(m, o, mode="coupled"),
    "WSAM decoupled": lambda m, o: WSAM(m, o, mode="decoupled"),
    "XSAM, alpha kept": lambda m, o: XSAM(m, o, alpha=1.2),
    "XSAM, searching": lambda m, o: XSAM(m, o, refresh=1),
}


def make_step(device: torch.device, layers: int, batch: int, length: int, build: Callable | None) -> Callable[[], None]:
    """One training step of a BERT classifier under a method, as a function to be timed."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
    model = BertForSequenceClassification(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    method = build(model, optimizer) if build is not None else None
    tokens = torch.randint(0, config.vocab_size, (batch, length), device=device)
    labels = torch.randint(0, 2, (batch,), device=device)

    def closure() -> torch.Tensor:
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        return loss

    def step() -> None:
        closure() if method is None else method.backward(closure)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    args = parser.parse_args()
    device = torch.device(args.device)
    steps = {name: make_step(device, args.layers, args.batch, args.length, build) for name, build in METHODS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    base = times["base (AdamW)"]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{datetime.date.today()}, {where}, torch {torch.__version__}, BERT {args.layers} layers x 384, ", end="")
    print(f"batch {args.batch} x {args.length}, median of {args.rounds} turns\n")
    print("| method | time / base step | min - max |\n| --- | --- | --- |")
    for name, taken in times.items():
        ratios = [t / b for t, b in zip(taken, base, strict=True)]
        print(f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
