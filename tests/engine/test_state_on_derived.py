"""Attributes of objects of classes derived from Python's, NumPy's or torch's, or of torch's own: state too."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import Net
from passes_of_state import descend
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hf_sharpness import SAM


def derived(kind: type, *arguments: Any) -> Callable[[], Any]:
    return lambda: type("Derived", (kind,), {"__module__": __name__})(*arguments)


def buffer() -> Tensor:
    return torch.zeros(3)


def trained_elsewhere(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return kind([nn.Parameter(torch.zeros(2))], lr=0.1)  # type: ignore[call-arg]


KINDS: dict[str, Callable[[], Any]] = {
    **{kind.__name__: derived(kind) for kind in (list, deque, set, dict, OrderedDict, defaultdict, tuple)},
    "Random": derived(random.Random, 0),
    "ndarray": lambda: np.zeros(3).view(type("Derived", (np.ndarray,), {"__module__": __name__})),
    "tensor": buffer,
    "frozen": lambda: nn.Parameter(torch.zeros(3), requires_grad=False),
    "Tensor": lambda: torch.zeros(3).as_subclass(type("Derived", (Tensor,), {"__module__": __name__})),
    "Adam": lambda: trained_elsewhere(torch.optim.Adam),
    "own Adam": lambda: trained_elsewhere(type("Derived", (torch.optim.Adam,), {"__module__": __name__})),
    "loader": lambda: DataLoader(TensorDataset(torch.zeros(2))),
    "own loader": derived(DataLoader, [0, 1]),
    "dataset": lambda: TensorDataset(torch.zeros(2)),
    "own dataset": derived(Dataset),
}


def loss_that_counts(model: nn.Module, held: Any) -> Callable[[Tensor], Tensor]:
    held.count, held.log = 0, []

    def loss_of(x: Tensor) -> Tensor:
        held.count += 1
        held.log.append(held.count)
        weight = 1 + 0.1 * (held.count + len(held.log))
        return model(x).square().mean() * weight  # type: ignore[no-any-return]

    return loss_of


@pytest.mark.parametrize("name", KINDS)
def test_a_count_on_it(name: str) -> None:
    weights, counts = [], []
    for method in (None, SAM):
        torch.manual_seed(0)
        model, held = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(), KINDS[name]()
        weights.append(descend(model, loss_that_counts(model, held), method))
        counts.append((held.count, held.log))
    assert counts == [(6, [1, 2, 3, 4, 5, 6])] * 2
    assert torch.equal(*weights)


class Slotted(torch.optim.SGD):
    __slots__ = ("count",)


@pytest.mark.parametrize("kind", [torch.optim.SGD, Slotted])
def test_a_count_on_the_base_optimizer(kind: type[torch.optim.Optimizer]) -> None:
    model = Net().double()
    optimizer: Any = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    optimizer.count = 0
    x = torch.ones(4, 6, dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.count += 1
        loss = model(x, torch.zeros(4, dtype=torch.long))["loss"]
        loss.backward()
        return loss  # type: ignore[no-any-return]

    SAM(model, optimizer, rho=0.1, steps=2).backward(closure)
    assert optimizer.count == 1


@pytest.mark.parametrize("name", ["list", "own loader", "own dataset"])
def test_one_with_a_lock_is_left_alone(name: str) -> None:
    """Another thread may write to it, at any time."""
    held = KINDS[name]()
    held.lock = threading.Lock()
    model = nn.Linear(4, 2).double()
    with pytest.warns(UserWarning, match="holds a lock") if name != "own loader" else contextlib.nullcontext():
        descend(model, loss_that_counts(model, held), SAM)
    assert held.count >= 12
    assert len(held.log) == held.count


@pytest.mark.parametrize("array", ["Derived", "records", "days"])
def test_contents_of_arrays(array: str) -> None:
    """Of the user's own kind; large, of what torch has no type for (the first step finds that it is written)."""
    kind = type("Derived", (np.ndarray,), {"__module__": __name__})
    counts = []
    for method in (None, SAM):
        torch.manual_seed(0)
        model = nn.Linear(4, 2).double()
        held = {
            "Derived": lambda: np.zeros(3).view(kind),
            "records": lambda: np.zeros(2**14, dtype=[("count", "i8"), ("value", "f4")]),
            "days": lambda: np.zeros(2**14, dtype="datetime64[D]"),
        }[array]()

        def loss_of(x: Tensor, model: nn.Module = model, held: Any = held) -> Tensor:
            if array == "records":
                held["count"][5] += 1
            else:
                held[2] += 1
            return model(x).square().mean()  # type: ignore[no-any-return]

        with (
            pytest.warns(UserWarning, match="noticed when it had")
            if method and array != "Derived"
            else contextlib.nullcontext()
        ):
            descend(model, loss_of, method)
        counts.append(int(held["count"][5] if array == "records" else held[2].astype("i8")))
    assert counts == [6, 6]
