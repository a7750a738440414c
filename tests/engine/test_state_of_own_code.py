"""State in objects with code of the user's own, in closures and batches, and flags that passes set."""

from __future__ import annotations

import functools
import threading
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from models import Record, classification, steps_of
from models.stateful import Stateful, same
from passes_of_state import BITWISE, ITEMS, STEPS, closures_of, descend, run
from reference import Spec, flat
from torch import Tensor, nn
from torch.nn import functional as F

from hf_sharpness import SAM, XSAM


class Hostile:
    """An object that tolerates no questions."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise AssertionError("asked")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("asked")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("asked")

    def __bool__(self) -> bool:
        raise AssertionError("asked")

    def __len__(self) -> int:
        raise AssertionError("asked")

    def __iter__(self) -> Any:
        raise AssertionError("asked")

    __hash__ = object.__hash__


class OwnList(list):
    def __iter__(self) -> Any:
        raise AssertionError("asked")

    def __len__(self) -> int:
        raise AssertionError("asked")


class OwnDict(dict):
    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("asked")

    items = values = keys = __iter__ = __getitem__


def test_no_code_of_the_users_is_called() -> None:
    model = Stateful().double()
    model.hostile = [Hostile(), {"a": Hostile()}, OwnList([1, Hostile()]), OwnDict(a=[1])]
    model.endless = model.endless_too = []
    model.endless.append(model.endless)
    stock, *_ = run(Stateful().double(), None)
    weights, *_ = run(model, BITWISE[0])
    assert torch.equal(weights, stock)


def test_closures_keep_their_own_variables() -> None:
    """A number that functions share, a default, a function's attribute, the batch itself."""
    seen = []
    for spec in (None, BITWISE[1]):
        model, count, rng = Stateful().double(), 0, np.random.default_rng(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = spec.ours(model, optimizer) if spec else None

        def closure(batch: Any, memory: list[int], model: nn.Module = model, rng: Any = rng) -> Tensor:
            nonlocal count
            count += 1
            memory.append(count)
            helper.calls += 1
            batch["x"].mul_(0.9)
            labels = batch.pop("labels")
            logits = model(batch["x"], labels)["logits"] * rng.uniform(0.5, 1.5)
            loss = F.cross_entropy(logits, labels) / (len(memory) + helper.calls)
            loss.backward()
            return loss

        def helper() -> None: ...

        helper.calls = 0
        memory: list[int] = []
        for (batch,) in steps_of(deepcopy(ITEMS), 8)[:STEPS]:
            once = functools.partial(closure, batch, memory)
            once() if method is None else method.backward(once)
            optimizer.step()
            optimizer.zero_grad()
            assert set(batch) == {"x"}
        seen.append((flat(model), count, memory, helper.calls, batch["x"]))
    assert same(*seen)


class Graph:
    """A batch that is no mapping, whose forward pass writes into it."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.nodes, self.labels, self.hops = batch["x"].clone(), batch["labels"], 0


class GraphNet(Stateful):
    def forward(self, graph: Graph) -> dict[str, Tensor]:
        graph.hops += 1
        graph.nodes.mul_(0.5).add_(1.0)
        return super().forward(graph.nodes / graph.hops, graph.labels)


@pytest.mark.parametrize("size", [8, 2_000])
def test_a_batch_object_that_the_forward_writes_to(size: int) -> None:
    """Small or large."""
    items = classification(size) * STEPS
    seen = []
    for spec in (None, BITWISE[1]):
        model = GraphNet().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = spec.ours(model, optimizer) if spec else None
        for (batch,) in steps_of(items, size)[:STEPS]:
            graph = Graph(batch)

            def closure(model: nn.Module = model) -> Tensor:
                loss = model(graph)["loss"]  # noqa: B023
                loss.backward()
                return loss

            closure() if method is None else method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
        seen.append((flat(model), graph.hops, graph.nodes))
    assert same(*seen)


class ActNorm(Stateful):
    """Trainable weights that the first pass sets by the data, behind a flag."""

    def prepare(self) -> None:
        self.is_set = False

    def factor(self, h: Tensor) -> float:
        if not self.is_set:
            self.last.bias.data.copy_(h.detach().mean() * torch.ones(3))
            self.is_set = True
        return 1.0

    def state(self) -> Any:
        return self.is_set


def test_an_initialisation_that_depends_on_data_happens_once() -> None:
    model = ActNorm().double()
    method = Spec("sam", "sam", {"rho": 0.3}).ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    (batch,) = steps_of(ITEMS, 8)[0]
    method.backward(closures_of(model, [batch]))
    assert model.is_set
    moved, reference = deepcopy(model), deepcopy(model)
    reference.zero_grad()
    reference(**batch)["loss"].backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in reference.parameters()]))
    moved.zero_grad()
    with torch.no_grad():
        for parameter, source in zip(moved.parameters(), reference.parameters(), strict=True):
            parameter += 0.3 * source.grad / norm
    moved(**batch)["loss"].backward()
    for parameter, expected in zip(model.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


class Hooking(Stateful):
    """Installs a hook in its first pass, as transformers' models do to capture outputs."""

    def prepare(self) -> None:
        self.record = Record()

    def factor(self, h: Tensor) -> float:
        if not getattr(self, "_hooks_installed", False):
            self._hooks_installed = True
            self.record.forwards += 1
        return 1.0


def test_a_flag_that_a_pass_creates_stays() -> None:
    model = Hooking().double()
    run(model, BITWISE[1])
    assert model.record.forwards == 1


class Service:
    """Sees every pass, and sets a flag in the second."""

    def __init__(self, model: nn.Module) -> None:
        self.lock, self.model, self.passes = threading.Lock(), model, 0

    def __call__(self, *args: Any) -> None:
        self.passes += 1
        if self.passes == 2:
            self.model.stop = True


def test_a_flag_that_is_set_in_a_further_pass_alone_stays() -> None:
    """As a signal handler does that asks for a stop."""
    model = Stateful().double()
    model.stop = False
    model.first.register_forward_hook(Service(model))
    with pytest.warns(UserWarning, match="a Service"):
        run(model, BITWISE[0], noticed=True)
    assert model.stop


def centred(logits: Tensor) -> Tensor:
    """The distance from a running mean, which is a global variable that the first call makes."""
    global _mean
    now = logits.detach().mean(0)
    _mean = 0.5 * _mean + now if "_mean" in globals() else now
    return (logits - _mean).pow(2).mean()


def test_a_global_variable_that_the_first_pass_makes() -> None:
    weights = []
    for method in (None, SAM, XSAM):
        globals().pop("_mean", None)
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        weights.append(descend(model, lambda x, model=model: centred(model(x)), method))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-12, atol=1e-14)
