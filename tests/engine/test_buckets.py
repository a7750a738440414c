"""What is reduced together."""

from __future__ import annotations

import torch

from hf_sharpness.vectors import buckets


def test_buckets_keep_order_and_never_mix_dtypes() -> None:
    a = [torch.zeros(4), torch.zeros(4), torch.zeros(4, dtype=torch.float64), torch.zeros(400)]
    found = buckets(a, 40)
    assert [[t.numel() for t in b] for b in found] == [[4, 4], [4], [400]]
