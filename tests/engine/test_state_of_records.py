"""Queues, long records, arrays, namespaces, classes, data sets: what one pass leaves is what a step leaves."""

from __future__ import annotations

import argparse
import sys
import types
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from passes_of_state import descend
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset, TensorDataset

from hf_sharpness import SAM, WSAM
from hf_sharpness.engine.state import bounds
from hf_sharpness.engine.state.paths import Root
from hf_sharpness.engine.state.quiet import QuietModules
from hf_sharpness.engine.state.reach import reach

LENGTH = 20_000


class Recording(nn.Module):
    """Scales its loss by what ``record`` returns, which writes to a state of its own."""

    def __init__(self, record: Callable[[Recording], float]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.record = record
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x).square().mean() * (1 + 0.1 * self.record(self))


def trained(record: Callable[[Recording], float], method: Any = None, steps: int = 6) -> Tensor:
    """The weights after some steps, with rho 0 those of a stock training."""
    torch.manual_seed(0)
    model = Recording(record).double()
    descend(model, model, method, steps)
    assert model.calls == steps
    return model.linear.weight.detach()


def fifo(bank: dict[int, int], step: int) -> float:
    bank[step] = step
    if len(bank) > 3:
        bank.pop(next(iter(bank)))
    return 0.01 * sum(place**2 * key for place, key in enumerate(bank))


def lru(bank: OrderedDict[int, int], step: int) -> float:
    bank[step] = step
    bank.move_to_end(min(bank))
    if len(bank) > 3:
        bank.popitem(last=False)
    return 0.01 * sum(place**2 * key for place, key in enumerate(bank))


def counted_in(namespace: Any) -> float:
    namespace.count += 1
    return float(namespace.count)


def replaced(record: Any, index: int) -> float:
    record[index] = 0.9 * record[index] + 0.1
    return float(record[index])


class Key:
    """May be referred to weakly."""


KEY = Key()


def counted_weakly(counts: weakref.WeakKeyDictionary[Key, float], step: int) -> float:
    counts[KEY] = counts.get(KEY, 0.0) + 1
    return counts[KEY]


def queued(queues: list[deque[int]], step: int) -> float:
    queues[step % 2].append(step)
    return float(sum(queues[step % 2]))


def counting_module() -> types.ModuleType:
    module = sys.modules["counters_of_a_test"] = types.ModuleType("counters_of_a_test")
    module.calls = 0  # type: ignore[attr-defined]
    return module


def counted_in_a_module(module: types.ModuleType, step: int) -> float:
    import counters_of_a_test

    counters_of_a_test.calls += 1
    return float(counters_of_a_test.calls)


class Labels(Dataset[Any]):
    def __init__(self) -> None:
        self.labels = torch.zeros(10)


def moved(labels: Tensor) -> float:
    labels += 0.1
    return float(labels[0])


class Mined(Sampler[int]):
    """Draws what is hard more often."""

    def __init__(self) -> None:
        self.hardness = [0.0] * 4

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))

    def __len__(self) -> int:
        return 4

    def saw(self, step: int) -> float:
        self.hardness[step % 4] += 0.1 + self.hardness[step % 4]
        return self.hardness[step % 4]


def clusters() -> Any:
    return pytest.importorskip("sklearn.cluster").MiniBatchKMeans(2, n_init=1, random_state=0)


def clustered(clusters: Any, step: int) -> float:
    clusters.partial_fit(np.arange(8.0).reshape(4, 2) * step)
    return 0.01 * float(np.abs(clusters.cluster_centers_).sum())


def adjacency() -> Any:
    return pytest.importorskip("scipy.sparse").csr_matrix(np.eye(3))


def strengthened(edges: Any, step: int) -> float:
    edges.data *= 1.1
    return float(edges.data[0])


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any, int], float]]] = {
    "a queue in a dict": (dict, fifo),
    "a dict by last use": (OrderedDict, lru),
    "a namespace": (lambda: argparse.Namespace(count=0), lambda state, step: counted_in(state)),
    "a weak dictionary": (weakref.WeakKeyDictionary, counted_weakly),
    "a queue for each class": (lambda: [deque(maxlen=3) for _ in range(100)], queued),
    "a module that a function imports": (counting_module, counted_in_a_module),
    "a long list": (lambda: [float(i) for i in range(LENGTH)], lambda state, step: replaced(state, 7)),
    "a long dict": (lambda: {i: float(i) for i in range(LENGTH)}, lambda state, step: replaced(state, 7)),
    "a part of a data set": (lambda: Subset(Labels(), [1]), lambda state, step: moved(state.dataset.labels)),
    "data sets": (lambda: ConcatDataset([Sized()]), lambda state, step: moved(state.datasets[0].labels)),
    "a sampler": (Mined, lambda state, step: state.saw(step)),
    "a data loader's sampler": (
        lambda: DataLoader(Sized(), sampler=Mined()),  # type: ignore[arg-type]
        lambda state, step: state.sampler.saw(step),
    ),
    "scikit-learn's estimator": (clusters, clustered),
    "SciPy's matrix": (adjacency, strengthened),
    "tensors as data": (lambda: TensorDataset(torch.zeros(9)), lambda state, step: moved(state.tensors[0])),
}


class Sized(Labels):
    def __len__(self) -> int:
        return 10


@pytest.mark.parametrize("method", [SAM, WSAM])
@pytest.mark.parametrize("name", STATES)
def test_a_state_is_what_one_pass_leaves(name: str, method: Any) -> None:
    make, write = STATES[name]
    results = []
    for kind in (None, method):
        state = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.append(trained(lambda model, state=state: write(state, model.calls), kind))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-14)


def test_a_long_record_that_begins_to_change_late_is_noted_from_the_next_look_on() -> None:
    """Steps 1, 10 and 100 look at all that is long; up to the next one a further pass changes it again."""
    record = dict.fromkeys(range(LENGTH), 0)

    def count(model: Recording) -> float:
        if model.calls >= 5:
            record[3] += 1
        return 0.0

    trained(count, SAM, steps=14)
    assert record[3] == (9 - 4) * 2 + (14 - 9)


def test_a_large_array_is_watched() -> None:
    """It is not copied before it is known to change, so that the first step is told of; later ones are exact."""
    memory = np.zeros(LENGTH)

    def write(model: Recording) -> float:
        memory[model.calls] += 1
        return 0.0

    with pytest.warns(
        UserWarning, match=r"float64, 20000 elements\) was changed in a training step for the first time"
    ):
        trained(write, SAM)
    assert memory[2:7].tolist() == [1] * 5


class Classed(nn.Module):
    history: tuple[int, ...] = ()
    text = ""
    first: Tensor | None = None
    turns = False


def test_what_a_class_holds() -> None:
    """Of any type, None among it, for which a tensor comes in the first pass."""
    seen = []
    for method in (None, SAM):
        Classed.history, Classed.text, Classed.first, Classed.turns = (), "", None, False
        net = Classed()

        def write(model: Recording, net: nn.Module = net) -> float:
            Classed.history += (model.calls,)
            Classed.text += "a"
            Classed.first = torch.zeros(1) if Classed.first is None else Classed.first + 1
            return float(Classed.first) + len(net.history) + len(Classed.text)

        seen.append((trained(write, method), Classed.history, Classed.text, float(Classed.first or 0)))
    (stock, *values), (ours, *others) = seen
    assert values == others
    torch.testing.assert_close(stock, ours, rtol=1e-13, atol=1e-14)


def test_torchscript() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    optimizer = torch.optim.SGD(scripted.parameters(), lr=0.1)
    method = SAM(scripted, optimizer, rho=0.1)
    x = torch.randn(8, 4)

    def closure() -> Tensor:
        loss = scripted(x).square().mean() + scripted[0].weight.sum()
        loss.backward()
        return loss

    for _ in range(3):
        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    assert int(scripted[1].num_batches_tracked) == 3


def test_nested_tensors_in_a_closure() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], dtype=torch.float64)
    trained(lambda model: float(nested.values().sum() * 0) if nested.is_nested else 0.0, SAM)


def test_a_lazy_module_is_refused_until_it_has_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"the parameter 0.weight has no shape yet .*: run the model on a batch before"
    ):
        SAM(model, optimizer)
    model(torch.randn(2, 4))
    SAM(model, optimizer)


def test_more_objects_than_are_looked_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST", 50)
    tree = {i: {"a": [i]} for i in range(60)}
    with pytest.warns(UserWarning, match="objects can be reached .* is not put back") as told:
        trained(lambda model: float(len(tree)), SAM)
    assert len(told) == 1


def test_what_a_sampler_draws_from_is_none_of_its_state() -> None:
    sampler = Mined()
    sampler.by_class = {label: [label] for label in range(100)}  # type: ignore[attr-defined]
    sampler.indices = list(range(LENGTH))  # type: ignore[attr-defined]
    found = reach([Root("sampler", sampler)], lambda value: False, False, QuietModules(), None)
    held = [id(holder.target) for holder in found.holders]
    assert id(sampler.hardness) in held
    assert id(sampler.by_class) not in held  # type: ignore[attr-defined]
    assert id(sampler.indices) not in held  # type: ignore[attr-defined]
