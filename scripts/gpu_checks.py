"""Every training mode that needs a GPU, run for real: prints a Markdown table with date and device.

    python scripts/gpu_checks.py                    # all checks, a few minutes
    python scripts/gpu_checks.py --only fp16 bf16   # some of them
    python scripts/gpu_checks.py --write            # and put the table into docs/gpu.md

Without a GPU it says so and does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import hf_sharpness

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
METHODS: dict[str, dict[str, Any]] = {
    "SAM": {"optim": "sam"},
    "WSAM coupled": {"optim": "wsam", "wsam_mode": "coupled"},
    "WSAM decoupled": {"optim": "wsam", "wsam_mode": "decoupled"},
    "XSAM": {"optim": "xsam"},
}
Row = tuple[str, str, str]
"""What was run, with which method, and what came out."""


# A small task: predict the sum of two tokens.


def network(dropout: float = 0.0, width: int = 64, layers: int = 2) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=128,
        num_labels=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def items(count: int = 128, length: int = 16) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 64, (count, length), generator=generator)
    return [{"input_ids": row, "labels": (row[0] + row[1]) % 8} for row in rows]


def flat(model: nn.Module) -> Tensor:
    parts = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in parts]).float().cpu()


class Watch(transformers.TrainerCallback):
    """After every step: the weights, whether the step was skipped, scale and learning rate."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.weights: list[Tensor] = []
        self.skipped: list[bool] = []
        self.scales: list[float] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        self.weights.append(flat(self.trainer.model))
        self.skipped.append(accelerator.optimizer_step_was_skipped)
        self.scales.append(accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0)
        self.rates.append(lr_scheduler.get_last_lr()[0])


def run(
    method: dict[str, Any] | None,
    model: nn.Module | None = None,
    watch: transformers.TrainerCallback | None = None,
    **arguments: Any,
) -> Any:
    """Train; the callback that watched. Without a method it is transformers' own Trainer."""
    library = transformers if method is None else hf_sharpness
    watch = watch or Watch()
    defaults = {
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "logging_strategy": "no",
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
    }
    base = {"base_optim" if method is not None else "optim": arguments.pop("base", "adamw_torch")}
    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(output_dir=folder, **defaults | base | arguments | (method or {}))
        model = model if model is not None else network()
        trainer = library.Trainer(model, args, train_dataset=items(), callbacks=[watch])
        watch.trainer = trainer
        trainer.train()
    return watch


def distance(ours: Any, reference: Any, start: Tensor) -> float:
    """How far apart two runs end, over the way that the weights went."""
    way = (reference.weights[-1] - start).norm()
    return float((ours.weights[-1] - reference.weights[-1]).norm() / way)


# The checks: each yields rows.


def mixed_precision(kind: str) -> Iterator[Row]:
    """Trainer with --fp16 or --bf16 against float32, beside the same distance for a stock Trainer."""
    start = flat(network())
    sgd = {"base": "sgd", "learning_rate": 0.05}
    stock = distance(run(None, **sgd, **{kind: True}), run(None, **sgd), start)
    for name, method in METHODS.items():
        ours = distance(run(method, **sgd, **{kind: True}), run(method, **sgd), start)
        yield f"`--{kind}` against float32", name, f"distance {ours:.1e} of the way (stock {stock:.1e})"


def overflowing(numbers: set[int]) -> Callable[[nn.Module], None]:
    """Makes backward number n of the classifier's input overflow, for n in `numbers`."""

    def attach(model: nn.Module) -> None:
        seen = [0]

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                seen[0] += 1
                if seen[0] in numbers:
                    output.register_hook(lambda g: g * float("inf"))

        model.classifier.register_forward_hook(hook)

    return attach


def overflow() -> Iterator[Row]:
    """--fp16: the third step overflows in the ascent, the replay or both; compared with stock, step by step."""

    def watched(method: dict[str, Any] | None, numbers: set[int], base: str) -> Watch:
        model = network()
        overflowing(numbers)(model)
        return run(method, model, fp16=True, max_steps=5, base=base)

    for base in ("adamw_torch", "adamw_torch_fused"):
        stock = watched(None, {6}, base)  # two micro-batches a step: the last of the third
        for name, method in METHODS.items():
            for where, numbers in {"ascent": {10}, "replay": {12}}.items():  # two passes of two micro-batches a step
                ours = watched(method, numbers, base)
                same = (ours.skipped, ours.scales, ours.rates) == (stock.skipped, stock.scales, stock.rates)
                untouched = torch.equal(ours.weights[1], ours.weights[2])
                finite = bool(ours.weights[-1].isfinite().all())
                good = same and untouched and finite
                result = "skipped as stock, bit for bit" if good else f"FAILED: {same=} {untouched=} {finite=}"
                yield f"fp16 overflow in the {where}, {base}", name, result


def compiled() -> Iterator[Row]:
    """torch.compile with inductor against eager."""
    start = flat(network())
    sgd = {"base": "sgd", "learning_rate": 0.05}
    for name, method in METHODS.items():
        torch._dynamo.reset()
        off = distance(run(method, **sgd, torch_compile=True), run(method, **sgd), start)
        yield "torch.compile (inductor), bf16 off", name, f"distance {off:.1e} of the way"


class Syncs(transformers.TrainerCallback):
    """Counts host synchronisations in the steps after the third."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.count = 0
        self.caught: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.caught = warnings.catch_warnings(record=True)
            self.log = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif state.global_step == 8:
            torch.cuda.set_sync_debug_mode("default")
            self.count = sum("synchroniz" in str(w.message) for w in self.log)
            self.caught.__exit__(None, None, None)


def synchronisations() -> Iterator[Row]:
    """Host synchronisations of five steps under bf16 and fp16, beside those of a stock Trainer."""
    for kind in ("bf16", "fp16"):
        stock = run(None, watch=Syncs(), **{kind: True}).count
        for name, method in METHODS.items():
            count = run(method, watch=Syncs(), **{kind: True}).count
            yield f"host synchronisations in 5 steps, `--{kind}`", name, f"{count} (stock {stock})"


def fsdp2() -> Iterator[Row]:
    """Accelerate's FSDP2 on one GPU, in a process of its own that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    done = subprocess.run([*command, __file__, "--fsdp2-rank"], capture_output=True, text=True, timeout=600)
    rows = [line.removeprefix("ROW ").split(" | ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if done.returncode or len(rows) != len(METHODS):
        raise RuntimeError(done.stderr[-1500:])
    yield from (tuple(row) for row in rows)


def fsdp2_rank() -> None:
    start = flat(network())
    sgd = {"base": "sgd", "learning_rate": 0.05}
    wrapping = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    for name, method in METHODS.items():
        reference = run(method, **sgd)
        off = distance(run(method, **sgd, fsdp=True, fsdp_config=dict(wrapping)), reference, start)
        print(f"ROW FSDP2 by Accelerate, one GPU, against DDP | {name} | distance {off:.1e} of the way", flush=True)
    torch.distributed.destroy_process_group()


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


CHECKS: dict[str, Callable[[], Iterator[Row]]] = {
    "fp16": lambda: mixed_precision("fp16"),
    "bf16": lambda: mixed_precision("bf16"),
    "overflow": overflow,
    "compile": compiled,
    "syncs": synchronisations,
    "fsdp2": fsdp2,
    "costs": costs,
}


def table(checks: list[str]) -> str:
    """Run the checks; a check that raises is a row that says so."""
    rows = ["| run | method | result |", "|---|---|---|"]
    for name in checks:
        try:
            for what, method, result in CHECKS[name]():
                rows.append(f"| {what} | {method} | {result} |")
                print(rows[-1], file=sys.stderr, flush=True)
        except Exception as error:
            traceback.print_exc()
            reason = (str(error).strip().splitlines() or [""])[-1][:200].replace("|", "/")
            rows.append(f"| {name} | | FAILED: {type(error).__name__}: {reason} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="which checks")
    parser.add_argument("--write", action="store_true", help="write docs/gpu.md")
    parser.add_argument("--fsdp2-rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU is available here: nothing was run and nothing is written", file=sys.stderr)
        return 2
    if args.fsdp2_rank:
        fsdp2_rank()
        return 0
    transformers.trainer.PrinterCallback = transformers.TrainerCallback
    made = table(args.only)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    where = f"{datetime.date.today()}, {torch.cuda.get_device_name()}, {versions}"
    page = f"# On a GPU\n\nMade by `python scripts/gpu_checks.py --write` on {where}; do not edit.\n\n{made}\n"
    print(page)
    if args.write:
        PAGE.write_text(page)
    return 1 if "FAILED" in made else 0


if __name__ == "__main__":
    sys.exit(main())
