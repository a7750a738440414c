"""Every training mode that needs a GPU, run for real: prints a Markdown table with date and device.

    python scripts/gpu_checks.py                    # all checks, a few minutes
    python scripts/gpu_checks.py --only fp16 bf16   # some of them

Without a GPU it says so and does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import traceback
from collections.abc import Callable, Iterator

import torch
import transformers
from gpu import exact, guard, modes
from gpu.training import Row

CHECKS: dict[str, Callable[[], Iterator[Row]]] = {
    "cpu": exact.against_cpu,
    "masks": exact.masks,
    "bases": exact.bases,
    "measure": exact.measured,
    "zero": guard.stock_at_zero,
    "quiet": guard.quiet,
    "heard": guard.heard,
    "memory": guard.out_of_memory,
    "fp16": lambda: modes.mixed_precision("fp16"),
    "bf16": lambda: modes.mixed_precision("bf16"),
    "overflow": modes.overflow,
    "compile": modes.compiled,
    "syncs": modes.synchronisations,
    "fsdp2": modes.fsdp2,
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
    parser.add_argument("--fsdp2-rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU is available here: nothing was run and nothing is written", file=sys.stderr)
        return 2
    if args.fsdp2_rank:
        modes.fsdp2_rank()
        return 0
    transformers.trainer.PrinterCallback = transformers.TrainerCallback
    made = table(args.only)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    where = f"On {datetime.date.today()}, on one {torch.cuda.get_device_name()} with {versions}"
    print(f"{where}:\n\n{made}")
    return 1 if "FAILED" in made else 0


if __name__ == "__main__":
    sys.exit(main())
