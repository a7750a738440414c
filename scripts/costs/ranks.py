"""Steps on several processes: which collectives DDP's and the method's passes make, and how long a step takes."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from .arms import MAIN, Arm, Setting, floor, ours
from .subjects import subject

SCOPES = ("global", "device", "micro_batch")


def _collectives(arm: Arm) -> int:
    """How many a step makes on this rank."""
    group = torch.distributed.group.WORLD
    before = group._get_sequence_number_for_group()  # private in torch: nothing public counts DDP's own
    arm.step()
    return group._get_sequence_number_for_group() - before


def _arms(setting: Setting) -> dict[str, Arm]:
    made = {"base": floor(setting, 0), "floor": floor(setting, 1)}
    for name in MAIN:
        for scope in SCOPES if not name.startswith("XSAM") else ("global",):
            made[f"{name}, {scope}"] = ours(setting, name, scope=scope)
    return made


def _work(rank: int, world: int, folder: str, name: str, batch: int, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    setting = Setting(subject(name, batch), torch.device("cpu"), wrap=DistributedDataParallel)
    found: dict[str, Any] = {}
    arms = _arms(setting)
    for arm in arms.values():
        arm.step()
        arm.step()  # DDP makes its buckets anew after the first
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for key, arm in arms.items():
            start = time.process_time()
            arm.step()
            times[key].append(time.process_time() - start)
    for key, arm in arms.items():
        found[key] = (_collectives(arm), statistics.median(times[key]))
    if rank == 0:
        torch.save(found, os.path.join(folder, "found.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def on_ranks(world: int, name: str, batch: int, rounds: int) -> dict[str, tuple[int, float]]:
    """For every arm the number of collectives in a step, and the median of its processor time on rank 0.

    Args:
        world: how many processes, with gloo on this machine.
        name: of the subject.
        batch: of each process.
        rounds: how many steps are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (world, folder, name, batch, rounds), nprocs=world)
        return torch.load(os.path.join(folder, "found.pt"), weights_only=True)
