"""The tensors that a method keeps, in a file of each rank beside ``optimizer.pt`` in the Trainer's checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..engine.kept import Kept

FILE = "sharpness_state_{rank}.pt"


def save(kept: Kept, folder: str, rank: int) -> None:
    """Write this rank's tensors; nothing for a method that keeps none.

    Args:
        kept: what the method keeps.
        folder: the checkpoint, made if it does not exist.
        rank: this process's number.
    """
    if kept.names:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(kept.state_dict(), Path(folder, FILE.format(rank=rank)))


def load(kept: Kept, folder: str, rank: int, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Take over the tensors of a checkpoint on all ranks; on none, with a warning, if one of them cannot.

    Args:
        kept: what the method keeps; a method that keeps nothing reads nothing.
        folder: the checkpoint.
        rank: this process's number.
        sum_over_ranks: adds a tensor over all processes.
    """
    if not kept.names:
        return
    path = Path(folder, FILE.format(rank=rank))
    state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    reason = "there is no such file" if state is None else kept.why_not(state)
    device = kept.weights.parameters()[0].device
    failures = int(sum_over_ranks(torch.tensor(0 if reason is None else 1, device=device)))
    if not failures:
        kept.load_state_dict(state)
        return
    warnings.warn(
        f"what the method {kept.method!r} keeps ({', '.join(kept.names)}) starts anew, as {path} was not taken over: "
        f"{reason or 'another rank could not take over its file'}",
        stacklevel=2,
    )
