"""One rank: runs the cases of a module and keeps the results, in the order in which the module defines them."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from launch import BY_DEFAULT, CASES, Failure


def main() -> None:
    module, directory = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=40))
    rank = torch.distributed.get_rank()
    importlib.import_module(module)
    everything = sys.argv[3] == "True"
    results = {}
    for name, run in CASES[module].items():
        if not everything and name not in BY_DEFAULT[module]:
            continue
        start = time.perf_counter()
        torch.manual_seed(0)
        try:
            results[name] = run(directory)
        except BaseException:
            results[name] = Failure(traceback.format_exc())
        torch.save(results, directory / f"rank{rank}.pt")
        print(f"rank {rank} {name} {time.perf_counter() - start:.2f} s", flush=True)
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
