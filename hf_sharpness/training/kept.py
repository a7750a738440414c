"""The tensors that a method keeps, in a file of each rank beside ``optimizer.pt`` in the Trainer's checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

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


def load(kept: Kept, folder: str, rank: int) -> None:
    """Take over the tensors of a checkpoint on all ranks; on none, with a warning, if one of them cannot.

    Args:
        kept: what the method keeps; a method that keeps nothing reads nothing.
        folder: the checkpoint.
        rank: this process's number.
    """
    if not kept.names:
        return
    path = Path(folder, FILE.format(rank=rank))
    state = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    reason = kept.load_state_dict(state)
    if reason is not None:
        warnings.warn(
            f"what the method {kept.method!r} keeps ({', '.join(kept.names)}) starts anew, as {path} was not taken "
            f"over: {reason}",
            stacklevel=2,
        )
