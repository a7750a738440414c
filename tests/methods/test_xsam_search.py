"""Which alpha XSAM's search takes, given the losses of its probes (arXiv 2603.10048)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_sharpness.methods import XSAM

inf, nan = math.inf, math.nan


class Probes:
    """Answers one probe after the other with a given loss."""

    def __init__(self, losses: list[float], dtype: torch.dtype) -> None:
        self.losses = iter(torch.tensor(losses, dtype=dtype))

    def probe(self, terms: object) -> Tensor:
        return next(self.losses)

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        return values


def alpha_of(losses: list[float], dtype: torch.dtype = torch.float32) -> float | None:
    method = XSAM(alpha_max=len(losses) - 1.0, alpha_points=len(losses))
    method.found_alpha = 9.0
    one = torch.ones(())
    return method.search(Probes(losses, dtype), [], [], one, one, one)


@pytest.mark.parametrize(
    ("losses", "alpha"),
    [
        ([1.0, 3.0, 2.0], 1.0),
        ([1.0, 3.0, 3.0], 1.0),
        ([-3.0, -1.0, -2.0], 1.0),
        ([nan, 1.0, 2.0, inf], 2.0),
        ([nan, nan], 9.0),
        ([0.0, 0.0], 0.0),
    ],
)
def test_the_smallest_alpha_of_the_highest_finite_loss(losses: list[float], alpha: float) -> None:
    assert alpha_of(losses) == alpha


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 16), (torch.float64, 16), (torch.bfloat16, 1)])
def test_losses_within_rounding_of_each_other_are_ties(dtype: torch.dtype, steps: int) -> None:
    spacing = torch.finfo(dtype).eps
    assert alpha_of([1.0, 1.0 + steps * spacing], dtype) == 0.0
    assert alpha_of([1.0, 1.0 + 2 * steps * spacing], dtype) == 1.0
    assert alpha_of([0.5, 1.0, 1.0 + steps * spacing], dtype) == 1.0
