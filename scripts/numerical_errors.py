"""How far rounding carries a short training away from float64, by type and method: docs/numerical-notes.md's table.

python scripts/numerical_errors.py            # print the table
python scripts/numerical_errors.py --write    # put it into docs/numerical-notes.md
"""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_sharpness import SAM, WSAM, XSAM

PAGE = Path(__file__).resolve().parents[1] / "docs" / "numerical-notes.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
STEPS, SEEDS = 100, 5
METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "AdamW alone": lambda model, optimizer: None,
    "SAM": lambda model, optimizer: SAM(model, optimizer, rho=0.05),
    "WSAM coupled": lambda model, optimizer: WSAM(model, optimizer, rho=0.05, mode="coupled"),
    "WSAM decoupled": lambda model, optimizer: WSAM(model, optimizer, rho=0.05, mode="decoupled"),
    "XSAM, alpha 1.5": lambda model, optimizer: XSAM(model, optimizer, rho=0.05, alpha=1.5),
}
TYPES = {"float32": None, "float32, bf16 autocast": torch.bfloat16, "float32, fp16 autocast": torch.float16}


def train(make: Callable[[Any, Any], Any], dtype: torch.dtype, autocast: torch.dtype | None, seed: int) -> list[Tensor]:
    """The weights before and after the training, as one vector each."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 128), nn.GELU())
    model = nn.Sequential(model, nn.Linear(128, 10)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    method = make(model, optimizer)
    weights = [nn.utils.parameters_to_vector(model.parameters()).detach().double()]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        x = torch.randn(64, 32, generator=generator, dtype=torch.float64).to(dtype)
        y = x[:, :10].argmax(1)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss.detach()

        closure() if method is None else method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    return [*weights, nn.utils.parameters_to_vector(model.parameters()).detach().double()]


def table() -> str:
    """For each method and type, the distance to the float64 run in per cent of the way that this went."""
    rows = [f"| method | {' | '.join(TYPES)} |", "| --- " * (1 + len(TYPES)) + "|"]
    for name, make in METHODS.items():
        cells = []
        exact = [train(make, torch.float64, None, seed) for seed in range(SEEDS)]
        for autocast in TYPES.values():
            shares = sorted(
                float(100 * (train(make, torch.float32, autocast, seed)[1] - end).norm() / (end - begin).norm())
                for seed, (begin, end) in enumerate(exact)
            )
            cells.append(f"{shares[SEEDS // 2]:.2g} ({shares[0]:.2g} - {shares[-1]:.2g})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    made = f"torch {torch.__version__}, {platform.machine()} CPU, {datetime.date.today()}"
    return "\n".join([f"Median of {SEEDS} seeds in per cent, in brackets the smallest and largest; {made}.", "", *rows])


if __name__ == "__main__":
    measured = table()
    print(measured)
    if "--write" in sys.argv:
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{measured}\n{END}{rest.split(END)[1]}")
