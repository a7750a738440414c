"""The checks of modes: each yields rows."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .training import METHODS, SGD, Count, Row, Watch, distance, even, flat, judged, network, run

SCRIPT = Path(__file__).resolve().parents[1] / "gpu_checks.py"


def mixed_precision(kind: str) -> Iterator[Row]:
    """Trainer with --fp16 or --bf16 against float32, beside the same distance for a stock Trainer."""
    start = flat(network())
    stock = distance(run(None, **SGD, **{kind: True}), run(None, **SGD), start)
    for name, method in METHODS.items():
        made = {**method, **even(name)}  # a search may end elsewhere on its grid
        ours = distance(run(made, **SGD, **{kind: True}), run(made, **SGD), start)
        yield f"`--{kind}` against float32", name, f"{judged(ours, 5 * stock)} (stock {stock:.1e})"


def overflowing(numbers: set[int]) -> Callable[[nn.Module], None]:
    """Makes backward number n of the classifier's input overflow, for n in `numbers`."""

    def attach(model: nn.Module) -> None:
        passes = Count()

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.requires_grad and passes.next() in numbers:
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
                ours = watched({**method, **even(name)}, numbers, base)
                same = (ours.skipped, ours.scales, ours.rates) == (stock.skipped, stock.scales, stock.rates)
                untouched = torch.equal(ours.weights[1], ours.weights[2])
                finite = bool(ours.weights[-1].isfinite().all())
                good = same and untouched and finite
                result = "skipped as stock, bit for bit" if good else f"FAILED: {same=} {untouched=} {finite=}"
                yield f"fp16 overflow in the {where}, {base}", name, result


def compiled() -> Iterator[Row]:
    """torch.compile with inductor against eager."""
    start = flat(network())
    for name, method in METHODS.items():
        torch._dynamo.reset()
        off = distance(run(method, **SGD, torch_compile=True), run(method, **SGD), start)
        yield "torch.compile (inductor), float32, against eager", name, judged(off, 1e-3)


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
    done = subprocess.run([*command, str(SCRIPT), "--fsdp2-rank"], capture_output=True, text=True, timeout=600)
    rows = [line.removeprefix("ROW ").split(" | ") for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if done.returncode or len(rows) != len(METHODS):
        raise RuntimeError(done.stderr.partition("ChildFailedError")[0][-6000:])
    yield from (tuple(row) for row in rows)


def fsdp2_rank() -> None:
    start = flat(network())
    wrapping = {"version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    references = {name: run(method, **SGD) for name, method in METHODS.items()}
    AcceleratorState._reset_state()  # accelerate decides once in a process how it runs
    for name, method in METHODS.items():
        watch = Sharded()
        run(method, watch=watch, **SGD, fsdp=True, fsdp_config=dict(wrapping))
        result = judged(distance(watch, references[name], start), 1e-4) if watch.is_sharded else "FAILED: not sharded"
        print(f"ROW FSDP2 by Accelerate, one GPU, against DDP | {name} | {result}", flush=True)
    torch.distributed.destroy_process_group()


class Sharded(Watch):
    """Looks whether the weights are."""

    is_sharded = False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_step_end(*args, **kwargs)
        self.is_sharded = all(isinstance(p, DTensor) for p in self.trainer.model.parameters())
