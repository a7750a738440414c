"""How much of a perturbation survives where weights are stored, or computed with, in 16 bits: a pretrained model.

    python scripts/half_weights.py [--steps 50] [--batches 4] [--write]
    python scripts/half_weights.py --transient [--write]

Needs the packages of the recipe trec-minilm. The model is fine-tuned for a few steps in float32 and then held in each
of the ways below. For the SAM perturbation `delta = rho g / ||g||` of single batches, the table shows, averaged:

- realised: norm of what the weights really moved by, over rho; and its cosine to `delta`;
- sharpness: L(w + realised) - L(w), beside L(w + delta) - L(w);
- correction: cosine of the gradient's change `g_s - g` at `w + realised` to that at `w + delta`, which is what a
  sharpness-aware step adds to the base optimizer's gradient.

All losses and gradients are computed in float32, so that only the rounding of the weights is seen.

`--transient`: float32 weights that begin as the bf16 numbers of a checkpoint, and are trained under bf16 autocast. How
much of `delta` autocast lets through, `<realised, delta> / ||delta||^2` over the linear layers of the
checkpoint, step by step. A small rho stands for a larger model, where the same rho moves each weight by less.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_sharpness import vectors
from hf_sharpness.tasks.locate import model_folder
from hf_sharpness.tasks.sources import SOURCES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "half-weights.md"
MARKS = "<!-- {}: begin -->", "<!-- {}: end -->"
Vector = list[Tensor]


def nearest(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Rounding to the nearest number of a type, as storing in it does."""
    return lambda tensor: tensor.to(dtype).float()


def stochastic(tensor: Tensor) -> Tensor:
    """Rounding to bf16, up or down at random with the distance as probability: right on average."""
    noise = torch.randint(0, 1 << 16, tensor.shape, dtype=torch.int32)
    return ((tensor.view(torch.int32) + noise) & ~0xFFFF).view(torch.float32)


@dataclass
class Way:
    """How the weights are held.

    Args:
        seen: what the forward pass sees of a weight.
        moved: what it sees of a weight that was moved.
        beneath: whether the exact weights lie beneath, and move; else what is seen moves.
        everywhere: whether this goes for all weights, or for those of linear layers alone, as under autocast.
    """

    seen: Callable[[Tensor], Tensor]
    moved: Callable[[Tensor], Tensor]
    beneath: bool = False
    everywhere: bool = True


BF16 = nearest(torch.bfloat16)
WAYS = {
    "float32": Way(lambda t: t, lambda t: t),
    "float32, bf16 autocast": Way(BF16, BF16, beneath=True, everywhere=False),
    "float32 out of a bf16 checkpoint, bf16 autocast, nearest": Way(BF16, BF16, everywhere=False),
    "bf16, nearest": Way(BF16, BF16),
    "bf16, stochastic": Way(BF16, stochastic),
    "fp16, nearest": Way(nearest(torch.float16), nearest(torch.float16)),
}


class Question:
    """The model with one batch: loss and gradient at any weights."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.model = model
        self.batch = batch
        self.live = [p.detach() for p in model.parameters()]

    def loss_and_gradient(self, weights: Vector) -> tuple[float, Vector]:
        vectors.copy_(self.live, weights)
        self.model.zero_grad()
        loss = self.model(**self.batch).loss
        loss.backward()
        zeros = torch.zeros_like
        return float(loss), [zeros(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()]


def difference(a: Vector, b: Vector) -> Vector:
    return [x - y for x, y in zip(a, b, strict=True)]


def cosine(a: Vector, b: Vector) -> float:
    dot = sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
    size = float(vectors.norm([x.double() for x in a]) * vectors.norm([x.double() for x in b]))
    return dot / size if size else 0.0


def measure(question: Question, exact: Vector, linear: list[bool], rho: float, way: str) -> dict[str, float]:
    """One way of holding the weights, one batch."""
    how = WAYS[way]
    rounded = [True] * len(exact) if how.everywhere else linear
    held = [how.seen(w) if yes else w for w, yes in zip(exact, rounded, strict=True)]
    loss, gradient = question.loss_and_gradient(held)
    delta = [rho / float(vectors.norm(gradient)) * g for g in gradient]
    start = exact if how.beneath else held
    wanted = [w + d for w, d in zip(held, delta, strict=True)]
    moved = [how.moved(w + d) if yes else w + d for w, d, yes in zip(start, delta, rounded, strict=True)]
    wanted_loss, wanted_gradient = question.loss_and_gradient(wanted)
    moved_loss, moved_gradient = question.loss_and_gradient(moved)
    realised = difference(moved, held)
    return {
        "norm": float(vectors.norm(realised)) / rho,
        "cosine": cosine(realised, delta),
        "sharpness": moved_loss - loss,
        "wanted": wanted_loss - loss,
        "correction": cosine(difference(moved_gradient, gradient), difference(wanted_gradient, gradient)),
    }


def prepared(steps: int, batches: int) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """MiniLM on TREC after some AdamW steps in float32 (dropout off), and the batches to measure on."""
    torch.manual_seed(0)
    folder = model_folder("builtin:minilm")
    data = SOURCES["trec"].read(None).train
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=6, dtype=torch.float32).eval()
    order = torch.randperm(len(data)).tolist()

    def batch(index: int) -> dict[str, Tensor]:
        rows = [data[i] for i in order[16 * index : 16 * index + 16]]
        encoded = tokenizer([text for text, _ in rows], padding=True, truncation=True, max_length=64)
        labels = torch.tensor([label for _, label in rows])
        return {name: torch.tensor(values) for name, values in encoded.items()} | {"labels": labels}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for index in range(steps):
        model(**batch(index)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, [batch(steps + index) for index in range(batches)]


def table(rhos: list[float], steps: int, batches: int) -> str:
    model, data = prepared(steps, batches)
    exact = vectors.clone([p.detach() for p in model.parameters()])
    within_linear = {id(p) for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
    linear = [id(p) in within_linear for p in model.parameters()]
    size = float(vectors.norm(exact))
    lines = [
        f"MiniLM-L6 (22.7 M parameters, norm of the weights {size:.0f}) on TREC, after {steps} steps of AdamW in "
        f"float32; mean over {batches} batches of 16; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.machine()} CPU, {datetime.date.today()}.",
        "",
        "| weights | rho | realised norm / rho | cosine | sharpness (exact) | cosine of the correction |",
        "|---|---|---|---|---|---|",
    ]
    for rho in rhos:
        for way in WAYS:
            found = [measure(Question(model, batch), exact, linear, rho, way) for batch in data]
            mean = {name: statistics.fmean(row[name] for row in found) for name in found[0]}
            lines.append(
                f"| {way} | {rho:g} | {mean['norm']:.3f} | {mean['cosine']:.3f} | {mean['sharpness']:.4f} "
                f"({mean['wanted']:.4f}) | {mean['correction']:.3f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines)


def transient(rhos: list[float], lr: float, shown: list[int]) -> str:
    lines = [
        f"MiniLM-L6 on TREC, its weights rounded to bf16 once, then AdamW at {lr:g} in float32, batch 16; "
        f"torch {torch.__version__}, {platform.machine()} CPU, {datetime.date.today()}.",
        "",
        "| warm-up | rho | " + " | ".join(f"step {step}" for step in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for warmup in (0, 100):
        model, data = prepared(0, max(shown) + 1)
        linear = [p for m in model.base_model.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(BF16(parameter))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t, w=warmup: min(1.0, (t + 1) / max(w, 1)))
        found: dict[float, list[str]] = {rho: [] for rho in rhos}
        for step, batch in enumerate(data):
            model(**batch).loss.backward()
            if step in shown:
                size = float(vectors.norm([p.grad for p in model.parameters() if p.grad is not None]))
                for rho in rhos:
                    through = asked = 0.0
                    for parameter in linear:
                        weight, delta = parameter.detach(), rho / size * parameter.grad
                        through += float(((BF16(weight + delta) - BF16(weight)).double() * delta).sum())
                        asked += float(delta.double().square().sum())
                    found[rho].append(f"{through / asked:.2f}")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        for rho, values in found.items():
            lines.append(f"| {f'{warmup} steps' if warmup else 'none'} | {rho:g} | " + " | ".join(values) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rho", type=float, nargs="+", default=[0.02, 0.05, 0.2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="put the table into docs/half-weights.md")
    parser.add_argument("--transient", action="store_true", help="how long bf16 autocast withholds a part of it")
    options = parser.parse_args()
    if options.transient:
        name, made = "transient", transient([0.002, 0.02], 2e-5, [0, 1, 2, 3, 10, 30, 60, 100])
    else:
        name, made = "measured", table(options.rho, options.steps, options.batches)
    if options.write:
        begin, end = (mark.format(name) for mark in MARKS)
        head, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{head}{begin}\n{made}\n{end}{rest.split(end)[1]}")
    else:
        print(made)


if __name__ == "__main__":
    main()
