"""Which alpha XSAM's search takes, given the losses of its probes (arXiv 2603.10048)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hf_sharpness.methods import XSAM
from hf_sharpness.methods.alpha_search import chosen, coarse

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
    return method.find_alpha(Probes(losses, dtype), [], [], one, one, one)


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


# A few of the points.


def asked_of(losses: list[float]) -> tuple[float | None, list[int]]:
    """What a coarse search over as many points finds, and which it has asked for."""
    asked: list[int] = []

    def losses_at(indices: list[int]) -> list[float]:
        asked.extend(indices)
        return [losses[index] for index in indices]

    return chosen(coarse(len(losses), losses_at), torch.float32), asked


@pytest.mark.parametrize("top", [0.0, 0.3, 3.6, 7.0, 9.5, 12.4, 15.0, 19.8, 20.0])
def test_a_parabola_is_searched_to_its_top_with_at_most_eight_probes(top: float) -> None:
    losses = [-((index - top) ** 2) for index in range(21)]
    found, asked = asked_of(losses)
    assert found == losses.index(max(losses))
    assert len(asked) == len(set(asked)) <= 8


def test_waves_of_every_phase_are_searched_to_their_top() -> None:
    """The loss on a circle through the plane, to lowest order; alpha * psi runs over half of it or less."""
    for phase in range(64):
        for width in (0.5, 1.0, 1.57):
            losses = [math.cos(width * index / 10 - 0.05 * phase) for index in range(21)]
            found, asked = asked_of(losses)
            assert found == losses.index(max(losses))
            assert len(asked) <= 8


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([1.0] * 21, 0),  # flat: the smallest
        ([nan] * 21, None),
        ([-abs(i - 6.0) if i < 15 else inf for i in range(21)], 6),
        ([float(i) if i < 20 else nan for i in range(21)], 19),  # an end that is not finite
        ([0.0, 2.0, 1.0, 4.0], 3),  # no more points than probes: all of them
    ],
)
def test_flat_and_broken_curves(losses: list[float], found: float | None) -> None:
    assert asked_of(losses)[0] == found
    assert len(asked_of(losses)[1]) <= 8


def test_the_method_probes_what_its_search_asks_for() -> None:
    class Counting(Probes):
        probed = 0

        def probe(self, terms: object) -> Tensor:
            Counting.probed += 1
            return torch.tensor(1.0)

    one = torch.ones(())
    for search, probes in (("grid", 21), ("coarse", 6)):
        Counting.probed = 0
        assert XSAM(search=search).find_alpha(Counting([], torch.float32), [], [], one, one, one) == 0.0
        assert Counting.probed == probes
