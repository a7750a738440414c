"""How many CPU threads a small model is trained on.

Its operations are so short that handing them to several threads costs more than it saves, and where the cores are
shared the threads wait for each other: a step of the digits recipe has been seen to take 40 times as long on two
threads as on one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

SMALL = 1_000_000
"""Parameters of the largest model that counts as small."""
_SET_BY_THE_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextlib.contextmanager
def one_thread_for_small_models(model: Any, device: torch.device) -> Iterator[bool]:
    """Inside, a small model on the CPU has one thread, unless the environment says how many.

    Yields:
        Whether this changed the number.
    """
    threads = torch.get_num_threads()
    small = device.type == "cpu" and model.num_parameters() <= SMALL
    if not small or threads == 1 or any(os.environ.get(name) for name in _SET_BY_THE_USER):
        yield False
        return
    torch.set_num_threads(1)
    try:
        yield True
    finally:
        torch.set_num_threads(threads)
