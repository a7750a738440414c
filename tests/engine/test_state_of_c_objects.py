"""What is written in C: methods held without their object, functions and objects whose members cannot be set."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import regex
import torch
from numpy.random import beta
from passes_of_state import descend
from torch import nn

from hf_sharpness import SAM, WSAM

WORDS = regex.compile(r"\w+")


class Held:
    """Remembers what it was called with, by the method of a list."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.remember = self.seen.append

    def __call__(self) -> float:
        self.remember(1.0)
        return float(len(self.seen))


class Counted:
    """Counts in an array that has no dimension."""

    def __init__(self) -> None:
        self.calls = np.array(0.0)

    def __call__(self) -> float:
        self.calls += 1
        return float(self.calls)


MAKE: dict[str, Callable[[], Callable[[], float]]] = {
    "a method of Python's generator": lambda: random.Random(0).random,
    "a method of NumPy's": lambda: functools.partial(np.random.default_rng(0).beta, 0.4, 0.4),
    "a method of NumPy's older one": lambda: np.random.RandomState(0).rand,
    "a function of NumPy's": lambda: lambda: beta(0.4, 0.4),
    "a pattern": lambda: lambda: 0.1 * len(WORDS.findall("one two three")),
    "a list's method": Held,
    "an array of no dimension": Counted,
}


class Scaled(nn.Module):
    def __init__(self, number: Callable[[], float]) -> None:
        super().__init__()
        self.linear, self.number = nn.Linear(4, 3), number

    def forward(self, x: Any) -> Any:
        return self.linear(x).square().mean() * (1 + 0.1 * self.number())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", [SAM, WSAM])
@pytest.mark.parametrize("name", MAKE)
def test_every_pass_gets_the_same(name: str, method: Any) -> None:
    weights = []
    for kind in (None, method):
        torch.manual_seed(0)
        np.random.seed(0)
        model = Scaled(MAKE[name]()).double()
        weights.append(descend(model, model, kind))
    torch.testing.assert_close(*weights, rtol=1e-13, atol=1e-14)
