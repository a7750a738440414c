"""The vector work is a fixed number of kernels, whatever the number of tensors, and never waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_sharpness import SAM, WSAM, XSAM, vectors
from hf_sharpness.engine import Engine

VIEWS_AND_ALLOCATIONS = ("detach", "empty_like", "zeros_like", "alias", "view")
ON_A_CPU = ("equal",)  # compares tensor by tensor, and ends at the first difference
METHODS = {
    "sam": SAM,
    "asam": lambda m, o: SAM(m, o, adaptive=True),
    "wsam-coupled": lambda m, o: WSAM(m, o, mode="coupled"),
    "wsam-decoupled": lambda m, o: WSAM(m, o, mode="decoupled"),
    "xsam": lambda m, o: XSAM(m, o, alpha=1.3),
}


class Operations(TorchDispatchMode):
    """Counts the operators that run, except while it is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.of_vectors: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            name = func.overloadpacket.__name__
            self.counts[name] += 1
            if name.startswith("_foreach") and len(args[0]) > 1:
                self.of_vectors[name] += 1
        return func(*args, **(kwargs or {}))


def operations_of_a_step(build: Callable, layers: int) -> Counter[str]:
    """Operators of the sharpness work in one step: forward and backward are not counted."""
    return counted(build, layers).counts


def counted(build: Callable, layers: int, before: int = 0) -> Operations:
    """The same, of a step with so many before it."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    method = build(model, optimizer)
    x = torch.randn(8, 4)
    counter = Operations()

    def closure() -> torch.Tensor:
        counter.paused = True
        loss = model(x).square().mean()
        loss.backward()
        counter.paused = False
        return loss

    for _ in range(before):
        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    with counter:
        method.backward(closure)
        optimizer.step()
    return counter


@pytest.mark.parametrize("name", METHODS)
def test_the_number_of_kernels_does_not_grow_with_the_model(name: str) -> None:
    few, many = (operations_of_a_step(METHODS[name], layers) for layers in (2, 30))
    assert sum(few.values()) > 5
    for counts in (few, many):
        for operator in (*VIEWS_AND_ALLOCATIONS, *ON_A_CPU):
            counts.pop(operator, None)
    assert few == many


@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor's value on the host is what synchronises: no step reads one.

    Where that waits for nothing some are: it saves passes over memory.
    """
    assert operations_of_a_step(METHODS[name], 3)["_local_scalar_dense"] > 0
    monkeypatch.setattr(Engine, "on_cpu", False)
    monkeypatch.setattr(vectors, "is_on_host", lambda tensor: False)
    assert operations_of_a_step(METHODS[name], 3)["_local_scalar_dense"] == 0


LEAST = {
    "sam": {"_foreach_norm": 1, "_foreach_copy_": 2, "_foreach_add_": 1},
    "wsam-coupled": {"_foreach_norm": 1, "_foreach_copy_": 2, "_foreach_add_": 1, "_foreach_mul_": 2},
    "wsam-decoupled": {"_foreach_norm": 2, "_foreach_copy_": 3, "_foreach_add_": 3},
    "xsam": {"_foreach_norm": 4, "_foreach_copy_": 3, "_foreach_add_": 3, "_foreach_mul_": 2},
}
"""Passes over all weights in a step that is not logged. SAM: read g for its norm, copy w, w += c g, put back."""


@pytest.mark.parametrize("name", LEAST)
def test_a_step_reads_and_writes_all_weights_no_more_often_than_it_must(name: str) -> None:
    """The base optimizer's own (SGD: one addition) are not counted."""
    passes = counted(METHODS[name], 3, before=1).of_vectors
    passes["_foreach_add_"] -= 1
    assert passes == LEAST[name]


def test_an_accelerator_goes_through_every_element_in_two_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gradient is not changed, or by one factor: passes over all weights at once find that."""
    monkeypatch.setattr(Engine, "on_cpu", False)
    monkeypatch.setattr(vectors, "is_on_host", lambda tensor: False)
    first, later = (counted(METHODS["wsam-decoupled"], 3, before).counts for before in (0, 2))
    assert first["cat"] > 0
    assert later["cat"] == 0
