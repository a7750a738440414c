"""Averages vectors over ranks, a few large pieces at a time."""

from __future__ import annotations

from typing import Any

import torch

from ..vectors import Vector, buckets, copy_


def average_over_ranks_(vector: Vector, group: Any = None, bucket_bytes: int = 25 * 2**20) -> None:
    """vector <- its mean over the ranks of a process group, in flat buckets (one all-reduce for each)."""
    world = torch.distributed.get_world_size(group)
    for bucket in buckets(vector, bucket_bytes):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        torch.distributed.all_reduce(flat, group=group)
        flat.div_(world)
        copy_(
            bucket, [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in bucket]), bucket, strict=True)]
        )
