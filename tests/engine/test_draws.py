"""Losses that draw from an iterator: every pass of a step gets what the first one drew, and a step draws once."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from models import Net, Record, classification, collate, steps_of
from reference import Spec, flat
from torch import Tensor
from torch.utils.data import DataLoader

METHODS = [
    Spec("sam", "sam", {"rho": 0.2}),
    Spec("sam-k3", "sam", {"rho": 0.2, "steps": 3}),
    Spec("sam-micro_batch", "sam", {"rho": 0.2, "scope": "micro_batch"}),
    Spec("wsam-coupled", "wsam", {"rho": 0.2, "mode": "coupled"}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.2, "mode": "decoupled"}),
    Spec("xsam", "xsam", {"rho": 0.2, "alpha_points": 3, "refresh": 1}),
]
ITEMS, MORE = classification(32), classification(20, seed=7)
BATCH, STEPS = 4, 4


def loader(**options: Any) -> Any:
    return DataLoader(MORE, batch_size=BATCH, shuffle=True, collate_fn=collate, **options)  # type: ignore[arg-type]


class Loader:
    """A second loader's batches, gone through again and again; what is drawn is changed in place."""

    def __init__(self) -> None:
        self.loader: Any = loader(generator=torch.Generator().manual_seed(1))
        self.iterator: Any = iter(())

    def draw(self) -> Any:
        batch = next(self.iterator, None)
        if batch is None:
            self.iterator = iter(self.loader)
            assert len(self.iterator) == 5
            batch = next(self.iterator)
        return batch

    def __call__(self, model: Any) -> Tensor:
        batch = self.draw()
        features = batch.pop("x").mul_(2)
        return model(x=features, labels=batch["labels"])["loss"] * (1 + torch.rand(()))


class LoaderOfTheGlobalGenerator(Loader):
    def __init__(self) -> None:
        super().__init__()
        self.loader = loader()


class Generator(Loader):
    """A generator function's, with random numbers of its own and the global ones."""

    def __init__(self) -> None:
        def batches() -> Iterator[Any]:
            numbers = np.random.default_rng(3)
            while True:
                for batch in loader():
                    yield batch | {"x": batch["x"] + numbers.normal() + torch.randn(())}

        self.iterator = batches()

    def draw(self) -> Any:
        assert len(list(zip(range(1), self.iterator, strict=False))) == 1  # one more, by other means than next()
        return self.iterator.send(None)


class Numbers:
    """Iterators in a list, in a dict and in the closure's variables."""

    def __init__(self) -> None:
        self.several: Any = [itertools.cycle([0.5, 1.0, 2.0]), iter([1.0, 3.0] * 50)]
        self.by_name: Any = {"count": itertools.count(1)}

    def __call__(self, model: Any) -> Tensor:
        weight = next(self.several[0]) * next(self.several[1]) / next(self.by_name["count"])
        return weight * sum(p.pow(2).sum() for p in model.parameters())


class NumbersInTuples(Numbers):
    """The same in a tuple, and in a tuple within it."""

    def __init__(self) -> None:
        super().__init__()
        cycle, numbers = self.several
        self.several, self.by_name = (cycle, numbers, "name"), {"count": ((self.by_name["count"],),)}

    def __call__(self, model: Any) -> Tensor:
        ((count,),) = self.by_name["count"]
        weight = next(self.several[0]) * next(self.several[1]) / next(count)
        return weight * sum(p.pow(2).sum() for p in model.parameters())


class NumbersByMethods(Numbers):
    """What is held are the iterators' methods."""

    def __init__(self) -> None:
        super().__init__()
        self.several = [iterator.__next__ for iterator in self.several]
        self.bound = types.MethodType(functools.partial(int), "1")  # has no name
        self.by_name = {"count": (self.by_name["count"].__next__, "name")}

    def __call__(self, model: Any) -> Tensor:
        weight = self.several[0]() * self.several[1]() / self.by_name["count"][0]()
        return weight * sum(p.pow(2).sum() for p in model.parameters())


class Infinite:
    """An iterator class of the user's own."""

    def __init__(self) -> None:
        self.loader, self.epochs = loader(), 0
        self.inner: Any = None

    def __next__(self) -> Any:
        if self.inner is None:
            self.inner = iter(self.loader)
        try:
            return next(self.inner)
        except StopIteration:
            self.epochs, self.inner = self.epochs + 1, None
            return next(self)


class OfAClass(Loader):
    def __init__(self) -> None:
        self.iterator = Infinite()


class Recorded:
    """What another kind draws without this package, step by step, by number."""

    def __init__(self, kind: type, accumulation: int) -> None:
        torch.manual_seed(0)
        self.values, self.random = [], []
        inner = kind()
        for _ in range(STEPS * accumulation):
            self.values.append(inner.draw() if isinstance(inner, Loader) else None)
            self.random.append(torch.rand(()))
        self.numbers = []
        if issubclass(kind, Numbers):
            inner = Numbers()
            several, counts = inner.several, inner.by_name["count"]
            self.numbers = [next(several[0]) * next(several[1]) / next(counts) for _ in self.values]

    def loss(self, model: Any, number: int) -> Tensor:
        if self.numbers:
            return self.numbers[number] * sum(p.pow(2).sum() for p in model.parameters())
        batch = self.values[number]
        return model(x=2 * batch["x"], labels=batch["labels"])["loss"] * (1 + self.random[number])


def trained(spec: Spec, accumulation: int, more: Callable[[Any, int], Tensor]) -> Tensor:
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = spec.ours(model, optimizer)

    def closure(batch: Any, number: int) -> Tensor:
        loss = (model(**batch)["loss"] + more(model, number)) / accumulation
        loss.backward()
        return loss

    torch.manual_seed(0)
    batches = [batch for step in steps_of(ITEMS * 2, BATCH, accumulation) for batch in step]
    for step in range(STEPS):
        numbers = range(step * accumulation, (step + 1) * accumulation)
        method.backward([lambda n=n: closure(batches[n], n) for n in numbers])
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


@pytest.mark.usually("^(wsam-decoupled|xsam)-")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "kind", [Loader, LoaderOfTheGlobalGenerator, Generator, Numbers, NumbersInTuples, NumbersByMethods, OfAClass]
)
@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_every_pass_draws_the_same(spec: Spec, kind: type, accumulation: int) -> None:
    recorded, loss = Recorded(kind, accumulation), kind()
    expected = trained(spec, accumulation, recorded.loss)
    weights = trained(spec, accumulation, lambda model, number: loss(model))
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)


def test_the_iterator_itself_is_back_after_a_step() -> None:
    """Also after an exception, and what further passes drew beyond the first one comes next."""
    model, record = Net().double(), Record()
    spec = Spec("sam", "sam", {"rho": 0.1, "check": "off"})
    method = spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    holder = Numbers()
    cycle = holder.several[0]

    def closure() -> Tensor:
        record.items.append([next(holder.several[0]) for _ in range(1 + (len(record.items) == 1))])
        if len(record.items) == 4:
            raise KeyboardInterrupt
        loss: Any = sum(p.pow(2).sum() for p in model.parameters())
        loss.backward()
        return loss

    method.backward(closure)
    assert record.items == [[0.5], [0.5, 1.0]]
    torch.rand(())
    state = torch.get_rng_state()
    assert [next(holder.several[0]) for _ in range(4)] == [1.0, 2.0, 0.5, 1.0]
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyboardInterrupt):
        method.backward(closure)
    assert holder.several[0] is cycle
