"""The same training by other implementations: how far apart the weights and the accuracies end.

    python scripts/agreement.py [--wsam wsam.py] [--xsam xsam.py] [--output_dir docs/evidence/agreement]

An MLP on scikit-learn's digits, the same seeds, batches and base optimizer for both. `pytorch_optimizer` is compared
with where it is installed; the authors' WSAM (intelligent-machine-learning/dlrover at 19e5d79,
atorch/atorch/optimizers/wsam.py) and XSAM (Cccjl219/XSAM at 15f9c6f, utils/xsam.py) where their files are given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_sharpness import SAM, WSAM, XSAM

STEPS, BATCH, PER_EPOCH = 200, 32, 44
BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD, momentum .9": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}),
    "AdamW": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
}
Step = Callable[[Tensor, Tensor, int], None]


def digits(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 64] and labels to train on, and to test on."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=dtype), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1408], y[:1408], x[1408:], y[1408:]


def train(dtype: torch.dtype, seed: int, build: Callable[[nn.Module], Step]) -> tuple[Tensor, Tensor, float]:
    """Weights before and after, and the accuracy on the test images."""
    torch.manual_seed(seed)
    x, y, test_x, test_y = digits(dtype)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(dtype)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    step = build(model)
    for number in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,))
        step(x[chosen], y[chosen], number)
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    return before, after, float((model(test_x).argmax(-1) == test_y).double().mean())


def ours(method: Any, base: str, **options: Any) -> Callable[[nn.Module], Step]:
    """This package's plain loop."""

    def build(model: nn.Module) -> Step:
        kind, settings = BASES[base]
        optimizer = kind(model.parameters(), **settings)
        sharp = method(model, optimizer, **options)

        def step(x: Tensor, y: Tensor, number: int) -> None:
            def closure() -> Tensor:
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.zero_grad()
            sharp.backward(closure)
            optimizer.step()

        return step

    return build


def two_closures(make: Callable[[nn.Module], Any], first_pass: bool) -> Callable[[nn.Module], Step]:
    """An optimizer whose ``step`` takes a closure; ``first_pass``: the caller makes the first pass."""

    def build(model: nn.Module) -> Step:
        optimizer = make(model)

        def step(x: Tensor, y: Tensor, number: int) -> None:
            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            if first_pass:
                closure()
            optimizer.step(closure)

        return step

    return build


def authors_xsam(module: Any, base: str, steps: int) -> Callable[[nn.Module], Step]:
    """As the authors' train.py calls it, alpha searched for once in an epoch."""

    def build(model: nn.Module) -> Step:
        kind, settings = BASES[base]
        optimizer = module.XSAM(model.parameters(), kind, steps, 0.15 / steps, 0.3, 1.0, 2.0, 0.1, 1e-12, **settings)

        def step(x: Tensor, y: Tensor, number: int) -> None:
            optimizer.backup_param()
            for ascent in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.first_step(step=ascent)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.second_step(number % PER_EPOCH == 0, model, x, y, nn.functional.cross_entropy)

        return step

    return build


def load(path: Path) -> Any:
    """The authors' file as a module; the helper that WSAM's imports does nothing, as there is no BatchNorm."""
    helper = types.ModuleType("atorch.optimizers.utils")
    helper.disable_running_stats = helper.enable_running_stats = lambda model: None  # type: ignore[attr-defined]
    for name in ("atorch", "atorch.optimizers"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["atorch.optimizers.utils"] = helper
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pairs(wsam: Path | None, xsam: Path | None) -> list[tuple[str, str, Any, Any]]:
    """(method, whose, ours, theirs) for each base optimizer."""
    found: list[tuple[str, str, Any, Any]] = []
    modes = (("coupled", 0.6, False), ("decoupled", 0.9, True))
    for base, (kind, settings) in BASES.items():
        if importlib.util.find_spec("pytorch_optimizer"):
            import pytorch_optimizer as peer

            for adaptive, rho in ((False, 0.05), (True, 0.5)):

                def sam(m: nn.Module, a: bool = adaptive, r: float = rho, k: Any = kind, s: Any = settings) -> Any:
                    return peer.SAM(m.parameters(), k, rho=r, adaptive=a, **s)

                name = f"{'ASAM' if adaptive else 'SAM'}, {base}"
                mine = ours(SAM, base, rho=rho, adaptive=adaptive)
                found.append(
                    (
                        name,
                        f"pytorch_optimizer {importlib.metadata.version('pytorch_optimizer')}",
                        mine,
                        two_closures(sam, True),
                    )
                )
            for mode, gamma, decouple in modes:

                def weighted(
                    m: nn.Module, g: float = gamma, d: bool = decouple, k: Any = kind, s: Any = settings
                ) -> Any:
                    return peer.WSAM(m, m.parameters(), k, gamma=g, decouple=d, **s)

                mine = ours(WSAM, base, gamma=gamma, mode=mode)
                library = f"pytorch_optimizer {importlib.metadata.version('pytorch_optimizer')}"
                found.append((f"WSAM {mode}, {base}", library, mine, two_closures(weighted, False)))
        if wsam is not None:
            module = load(wsam)
            for mode, gamma, decouple in modes:

                def authors(
                    m: nn.Module,
                    g: float = gamma,
                    d: bool = decouple,
                    k: Any = kind,
                    s: Any = settings,
                    of: Any = module,
                ) -> Any:
                    return of.WeightedSAM(m, k(m.parameters(), **s), gamma=g, decouple=d)

                mine = ours(WSAM, base, gamma=gamma, mode=mode)
                found.append((f"WSAM {mode}, {base}", "the authors", mine, two_closures(authors, False)))
        if xsam is not None:
            for steps in (1, 3):
                mine = ours(XSAM, base, rho=0.15, rho_max=0.3, steps=steps, search="grid", refresh=PER_EPOCH)
                found.append((f"XSAM k = {steps}, {base}", "the authors", mine, authors_xsam(load(xsam), base, steps)))
    return found


def main() -> None:
    """Train all pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wsam", type=Path)
    parser.add_argument("--xsam", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("docs/evidence/agreement"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Agreement with other implementations\n",
        f"`python scripts/agreement.py`, {date.today()}, torch {torch.__version__}: {STEPS} steps of an MLP on digits, "
        "batch 32, seeds 0 to 2. *Apart* is the largest distance between the final weights over the distance from the "
        "start; the accuracies are means over the seeds in float32.\n",
        "| method, base | other | apart, float64 | apart, float32 | accuracy: ours | theirs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, other, mine, theirs in pairs(given.wsam, given.xsam):
        apart, scores = {}, {}
        for dtype in (torch.float64, torch.float32):
            runs = [(train(dtype, seed, mine), train(dtype, seed, theirs)) for seed in range(3)]
            apart[dtype] = max(float((a[1] - b[1]).norm() / (a[1] - a[0]).norm()) for a, b in runs)
            scores = {side: sum(pair[side][2] for pair in runs) / 3 for side in (0, 1)}
        figures = f"{apart[torch.float64]:.1e} | {apart[torch.float32]:.1e} | {scores[0]:.4f} | {scores[1]:.4f}"
        lines.append(f"| {name} | {other} | {figures} |")
        print(lines[-1])
    given.output_dir.mkdir(parents=True, exist_ok=True)
    (given.output_dir / "agreement.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
