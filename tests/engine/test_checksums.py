"""Writes that neither torch's operators nor its versions tell of: NumPy's to a tensor's memory, other kernels'."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from reference import Spec
from torch import Tensor, nn
from torch.nn import functional as F

SAM = Spec("sam", "sam", {"rho": 0.0})
X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class Tally(nn.Module):
    """Counts in a table that is too large to be copied for every pass."""

    def __init__(self, size: int = 2**15 + 1, frozen: bool = False, writes: Any = lambda moved: True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(4, 3)
        table = torch.zeros(size)
        if frozen:
            self.table = nn.Parameter(table, requires_grad=False)
        else:
            self.register_buffer("table", table)
        self.writes, self.start = writes, self.last.weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        if self.writes(not torch.equal(self.last.weight, self.start)):
            self.table.numpy()[-1] += 1.0
        return F.cross_entropy(self.last(x), Y) * (1 + float(self.table[-1]))


def run(model: Tally, steps: int, spec: Spec = SAM) -> tuple[list[float], list[float], list[str]]:
    """After every step: the count, and the sharpness; and what was said."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    method: Any = spec.ours(model, optimizer)
    counts, sharpness = [], []

    def closure() -> Tensor:
        loss = model(X)
        loss.backward()
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
            counts.append(float(model.table[-1]))
            sharpness.append(float(method.metrics["sharpness"]))
    return counts, sharpness, [str(w.message) for w in caught if "for the first time" in str(w.message)]


@pytest.mark.parametrize("frozen", [False, True], ids=["buffer", "frozen-parameter"])
@pytest.mark.parametrize("size", [2**15, 2**15 + 1], ids=["words", "bytes"])
def test_a_silent_write_is_noticed_in_a_step_that_is_looked_at(frozen: bool, size: int) -> None:
    """That step is wrong, and says so; each later one counts once, and its passes see the same."""
    counts, sharpness, said = run(Tally(size, frozen), 5)
    assert len(said) == 1
    assert "model.table" in said[0]
    assert sharpness[0] > 0
    assert sharpness[1:] == [0.0] * 4
    assert [after - before for before, after in itertools.pairwise(counts)] == [1.0] * 4


def test_one_of_further_passes_alone() -> None:
    """At moved weights only: the first pass left the table as it was."""
    _, _, said = run(Tally(writes=lambda moved: moved), 1, Spec("sam", "sam", {"rho": 0.1}))
    assert len(said) == 1
    assert "have changed it" in said[0]


def test_nothing_is_said_of_what_stays() -> None:
    assert run(Tally(writes=lambda moved: False), 12)[2] == []


class Late(Tally):
    """All of its table moves through ``.data``, which no version shows, from the fifth step: none that is looked at."""

    def __init__(self, size: int, frozen: bool) -> None:
        super().__init__(size, frozen, writes=lambda moved: False)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        if self.steps > 4:
            self.table.data.add_(1.0)
        return super().forward(x)


@pytest.mark.parametrize("frozen", [False, True], ids=["buffer", "frozen-parameter"])
@pytest.mark.parametrize("size", [16, 2**15 + 1], ids=["small", "large"])
def test_a_write_through_data_that_begins_late(frozen: bool, size: int) -> None:
    """A small buffer is put back as ever; what is not copied from the step after, and that one says so."""
    counts, sharpness, said = run(Late(size, frozen), 8)
    is_copied = size == 16 and not frozen
    assert len(said) == (not is_copied)
    assert sharpness[:4] == [0.0] * 4
    assert (sharpness[4] > 0) == (not is_copied)
    assert sharpness[5:] == [0.0] * 3
    assert [after - before for before, after in itertools.pairwise(counts[4:])] == [1.0] * 3
