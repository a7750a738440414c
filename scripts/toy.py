"""Where the methods go in two dimensions: trajectories, the stall, and the floor of the gradient.

    python scripts/toy.py [--output_dir docs/evidence/toy]

Leaves `toy.md`, `toy.csv` and `toy.png`. Needs matplotlib; about two minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_sharpness import SAM, WSAM, XSAM

Function = Callable[[Tensor], Tensor]
Row = dict[str, Any]

_PLACES = {"the sharp minimum": (-16.8, 12.8), "the flat minimum": (19.8, 29.9), "the saddle between": (0.3, 22.5)}
_START = (-6.0, 10.0)


def two_minima(w: Tensor) -> Tensor:
    """The loss of the WSAM paper's toy (arXiv 2305.15817, section 5.1): a sharp minimum near the start, a flat one.

    -log(.7 exp(-K_1 / 1.8^2) + .3 exp(-K_2 / 1.2^2)), K_i the divergence of N(mean, spread) from N(20, 30), N(-20, 10).
    """
    mean, spread = w[0], w[1]
    terms = []
    for share, width, at, wide in ((0.7, 1.8, 20.0, 30.0), (0.3, 1.2, -20.0, 10.0)):
        divergence = torch.log(wide / spread) + (spread**2 + (mean - at) ** 2) / (2 * wide**2) - 0.5
        terms.append(torch.log(torch.tensor(share, dtype=w.dtype)) - divergence / width**2)
    return -torch.logsumexp(torch.stack(terms), 0)


def waves(seed: int) -> Function:
    """Twelve random waves and a wide bowl: minima, maxima and saddles close together."""
    draw = np.random.default_rng(seed)
    directions = torch.tensor(1.5 * draw.normal(size=(12, 2)))
    heights, phases = torch.tensor(draw.normal(size=12)), torch.tensor(draw.uniform(0, 2 * np.pi, 12))
    return lambda w: (heights * torch.cos(directions @ w + phases)).sum() + 0.05 * w.square().sum()


def bowl(w: Tensor) -> Tensor:
    """A quadratic with curvatures 1 and 10."""
    return 0.5 * (w[0] ** 2 + 10 * w[1] ** 2)


def descend(
    function: Function,
    start: tuple[float, float],
    make: Callable[[nn.Module, torch.optim.Optimizer], Any] | None,
    lr: float,
    steps: int,
    momentum: float = 0.0,
    decay: Callable[[int], float] | None = None,
) -> np.ndarray:
    """Train two numbers in float64.

    Returns:
        [steps + 1, 2]: where they were.
    """
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    method = make(model, optimizer) if make else None
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay or (lambda step: 1.0))
    path = [model.w.detach().numpy().copy()]

    def closure() -> Tensor:
        loss = function(model.w)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.zero_grad()
        method.backward(closure) if method else closure()
        optimizer.step()
        scheduler.step()
        path.append(model.w.detach().numpy().copy())
    return np.array(path)


def gradient(function: Function, w: np.ndarray) -> np.ndarray:
    """The gradient at a point."""
    point = torch.tensor(w, requires_grad=True)
    return torch.autograd.grad(function(point), point)[0].numpy()


def trajectories() -> tuple[list[Row], dict[str, np.ndarray]]:
    """Which minimum each method finds from one start beside the sharp one; the paths are those of rho 4."""
    paths, rows = {}, []
    for rho in (2.0, 4.0):
        for name, make in _methods(rho).items():
            paths[name] = path = descend(two_minima, _START, make, lr=5.0, steps=300, momentum=0.9)
            distances = {place: np.hypot(*(path[-1] - at)) for place, at in _PLACES.items()}
            nearest = min(distances, key=lambda place: distances[place])
            rows.append(
                {"part": "trajectories", "what": name if name == "SGD" else f"{name}, rho {rho:g}"}
                | {"ends at": "({:.1f}, {:.1f})".format(*path[-1])}
                | {"which is": nearest if distances[nearest] < 4 else "on the way"}
                | {"loss": f"{float(two_minima(torch.tensor(path[-1]))):.3f}"}
            )
    return list({row["what"]: row for row in rows}.values()), paths


def _methods(rho: float) -> dict[str, Any]:
    arms: dict[str, Any] = {"SGD": None, "SAM": lambda m, o: SAM(m, o, rho=rho)}
    for mode, gamma in (("coupled", 0.3), ("coupled", 0.6), ("coupled", 0.8), ("coupled", 0.92), ("decoupled", 0.92)):

        def make(m: nn.Module, o: torch.optim.Optimizer, mode: str = mode, gamma: float = gamma) -> WSAM:
            return WSAM(m, o, rho=rho, gamma=gamma, mode=mode)

        arms[f"WSAM {mode} gamma {gamma:g}"] = make
    arms["XSAM"] = lambda m, o: XSAM(m, o, rho=rho, rho_max=2 * rho, refresh=30)
    return arms


def stalls(seeds: int = 2, starts: int = 10) -> list[Row]:
    """How often SAM comes to rest where the gradient is not zero, from random starts on random landscapes."""
    rows = []
    for rho in (0.5, 1.0):
        for share in (0.0, 0.05, 0.2):
            stalled = 0
            for seed in range(seeds):
                function = waves(seed)
                for start in np.random.default_rng(seed).uniform(-4, 4, (starts, 2)):

                    def make(m: nn.Module, o: torch.optim.Optimizer, rho: float = rho, share: float = share) -> SAM:
                        return SAM(m, o, rho=rho, start=share, total_steps=500)

                    w = descend(function, tuple(start), make, lr=0.06, steps=500)[-1]
                    g = gradient(function, w)
                    moved = gradient(function, w + rho * g / np.linalg.norm(g))
                    stalled += bool(np.linalg.norm(g) > 0.05 and np.linalg.norm(moved) < 1e-4)
            what = f"SAM rho {rho:g}" + (f", the first {share:.0%} plain" if share else "")
            rows.append({"part": "stall", "what": what, "stalled": f"{stalled} of {seeds * starts}"})
    return rows


def floors() -> tuple[list[Row], dict[str, np.ndarray]]:
    """The norm of the gradient that is left on a quadratic, by how rho and the learning rate go down."""
    lasts: dict[str, np.ndarray] = {}
    rows = []
    steps = 1000
    linear = [1 - step / steps for step in range(steps + 1)]
    for rho in (0.0, 0.01, 0.1):
        for name, options, decay in (
            ("rho and learning rate constant", {}, None),
            ("rho constant, learning rate to zero", {}, lambda step: linear[step]),
            ("both to zero", {"rho_schedule": "lr", "total_steps": steps}, lambda step: linear[step]),
        ):
            for gamma in (None, 0.8):
                method: Any = SAM if gamma is None else WSAM
                own = dict(options) if gamma is None else {**options, "gamma": gamma, "mode": "coupled"}

                def make(m: nn.Module, o: Any, method: Any = method, own: Any = own, rho: float = rho) -> Any:
                    return method(m, o, rho=rho, **own)

                path = descend(bowl, (1.0, 1.0), make, lr=0.05, steps=steps, decay=decay)
                norms = np.array([np.linalg.norm(gradient(bowl, w)) for w in path])
                what = f"{'SAM' if gamma is None else f'WSAM gamma {gamma:g}'} rho {rho:g}, {name}"
                lasts[what] = norms
                rows.append({"part": "floor", "what": what, "gradient": f"{norms[-100:].mean():.2g}"})
    return rows, lasts


def draw(paths: dict[str, np.ndarray], norms: dict[str, np.ndarray], path: Path) -> None:
    """Trajectories over the contours, and the norms over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    means, spreads = np.meshgrid(np.linspace(-35, 45, 161), np.linspace(2, 50, 97))
    heights = np.array(
        [
            [float(two_minima(torch.tensor([m, s], dtype=torch.float64))) for m, s in zip(*row, strict=True)]
            for row in zip(means, spreads, strict=True)
        ]
    )
    left.contour(means, spreads, heights, levels=np.quantile(heights, np.linspace(0, 0.9, 22)), cmap="Greys_r")
    for name, line in paths.items():
        left.plot(line[:, 0], line[:, 1], linewidth=1.3, alpha=0.85, label=name)
        left.plot(*line[-1], marker="o", color="black", markersize=4)
    left.plot(*_START, marker="x", color="black")
    left.set_title("sharp minimum on the left, flat one on the right; × start", fontsize=10)
    left.set_xlim(-35, 45)
    left.set_ylim(2, 50)
    left.legend(fontsize=8)
    for name, line in norms.items():
        if name.startswith("SAM rho 0.1"):
            right.semilogy(np.maximum(line, 1e-9), label=name, linewidth=1.2)
    right.set_title("norm of the gradient on a quadratic", fontsize=10)
    right.set_xlabel("step")
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all three and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("docs/evidence/toy"))
    folder = parser.parse_args().output_dir
    torch.set_num_threads(1)
    parts = {}
    parts["Trajectories"], paths = trajectories()
    parts["The stall"] = stalls()
    parts["The floor of the gradient"], norms = floors()
    draw(paths, norms, folder / "toy.png")
    command = f"python scripts/toy.py --output_dir {folder}"
    text = [f"# Two dimensions\n\n`{command}`, {date.today()}, torch {torch.__version__}, float64.\n"]
    for name, rows in parts.items():
        keys = [key for key in rows[0] if key != "part"]
        lines = [keys, ["---"] * len(keys), *([row[key] for key in keys] for row in rows)]
        text += [f"## {name}\n", *("| " + " | ".join(line) + " |" for line in lines), ""]
    (folder / "toy.md").write_text("\n".join(text), encoding="utf-8")
    rows = [row for part in parts.values() for row in part]
    with (folder / "toy.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("\n".join(text))


if __name__ == "__main__":
    main()
