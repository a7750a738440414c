"""State in all sorts of places: every pass finds what the first one found, and a step leaves what one pass leaves."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from models import Record, classification, held, places, stateful, steps_of
from models.stateful import Loss, Stateful, same
from reference import Spec, flat
from torch import Tensor, nn
from torch.nn import functional as F

BITWISE = [
    Spec("sam", "sam", {"rho": 0.0}),
    Spec("sam-k2", "sam", {"rho": 0.0, "steps": 2}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.0, "mode": "decoupled"}),
    Spec("sam-micro_batch", "sam", {"rho": 0.0, "scope": "micro_batch"}),
]
ROUNDED = [
    Spec("wsam-coupled", "wsam", {"rho": 0.0, "mode": "coupled"}),
    Spec("xsam", "xsam", {"rho": 0.0, "rho_max": 0.0, "alpha_points": 3, "refresh": 1}),
]
every_method = pytest.mark.parametrize("spec", [*BITWISE, *ROUNDED], ids=str)
MODELS = stateful.MODELS | places.MODELS
every_model = pytest.mark.parametrize("name", MODELS)
ITEMS = classification(48)
STEPS = 4


def closures_of(model: nn.Module, micro_batches: list[Any], loss: Callable[..., Tensor] | None = None) -> list[Any]:
    def closure(batch: Any) -> Tensor:
        output = model(**batch)
        value = output["loss"] if loss is None else loss(output["logits"], batch["labels"])
        value = value / len(micro_batches)
        value.backward()
        return value

    return [functools.partial(closure, batch) for batch in micro_batches]


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "teacher" not in name]


def run(model: nn.Module, spec: Spec | None, accumulation: int = 1, loss: Any = None, noticed: bool = False) -> Any:
    """A few steps, stock without a ``spec``. Returns the weights, the state after every step, and the sharpness."""
    stateful.reset_script()
    held.reset()
    optimizer = torch.optim.SGD(trained(model), lr=0.1, momentum=0.9)
    method = spec.ours(model, optimizer) if spec else None
    states, sharpness = [], []
    with warnings.catch_warnings():
        if not noticed:
            warnings.simplefilter("error", UserWarning)
        for step in steps_of(ITEMS, 8, accumulation, epochs=2)[:STEPS]:
            closures = closures_of(model, step, loss)
            if method is None:
                for closure in closures:
                    closure()
            else:
                method.backward(closures)
                sharpness.append(float(method.metrics["sharpness"]))
            optimizer.step()
            optimizer.zero_grad()
            states.append((loss or model).state())
    return flat(model), states, sharpness


@every_model
@pytest.mark.parametrize("accumulation", [1, 3])
@every_method
def test_rho_0_is_stock(spec: Spec, accumulation: int, name: str) -> None:
    """Weights bit for bit (within rounding where a method adds up gradients), the state too, and no sharpness."""
    stock, states, _ = run(MODELS[name]().double(), None, accumulation)
    weights, ours, sharpness = run(MODELS[name]().double(), spec, accumulation)
    assert not same(stock, flat(MODELS[name]().double()))
    if spec in BITWISE:
        assert torch.equal(weights, stock)
        assert same(ours, states)
    torch.testing.assert_close(weights, stock, rtol=1e-9, atol=1e-12)
    assert max(map(abs, sharpness)) < (1e-15 if spec in BITWISE else 1e-6)


@pytest.mark.parametrize("name", [*stateful.DEEP_COPIES, *places.DEEP_COPIES])
def test_the_gradient_at_moved_weights(name: str) -> None:
    """That of a copy of the model, state included, taken before the step and moved by hand."""
    model = MODELS[name]().double()
    optimizer = torch.optim.SGD(trained(model), lr=0.1)
    method = Spec("sam", "sam", {"rho": 0.3}).ours(model, optimizer)
    for (batch,) in steps_of(ITEMS, 8)[:STEPS]:
        clean, moved = deepcopy(model), deepcopy(model)
        clean(**batch)["loss"].backward()
        climbed = [p.grad.flatten() for p in trained(clean) if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat(climbed))
        with torch.no_grad():
            for parameter, source in zip(trained(moved), trained(clean), strict=True):
                if source.grad is not None:
                    parameter += 0.3 * source.grad / norm
        moved(**batch)["loss"].backward()
        method.backward(closures_of(model, [batch]))
        for parameter, expected in zip(trained(model), trained(moved), strict=True):
            if expected.grad is not None:
                torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-9, atol=1e-12)
        assert same(model.state(), clean.state())
        optimizer.step()
        optimizer.zero_grad()


@every_method
def test_a_loss_module_that_a_closure_refers_to(spec: Spec) -> None:
    stock, states, _ = run(Stateful().double(), None, 2, Loss().double())
    weights, ours, _ = run(Stateful().double(), spec, 2, Loss().double())
    torch.testing.assert_close(weights, stock, rtol=1e-9, atol=1e-12)
    if spec in BITWISE:
        assert torch.equal(weights, stock)
        assert same(ours, states)


class LateQueue(stateful.Queue):
    """Fills from the third pass on, after the steps that are looked at closely."""

    def factor(self, h: Tensor) -> Any:
        self.seen = getattr(self, "seen", 0) + 1
        return super().factor(h) if self.seen > 2 else 1.0


def test_a_large_buffer_that_changes_late_is_noticed() -> None:
    """That step's further passes see it changed, which a warning says; it ends right, as do later steps."""
    stock, states, _ = run(LateQueue().double(), None)
    with pytest.warns(UserWarning, match=r"model.queue .* changed in a training step for the first time") as caught:
        weights, ours, sharpness = run(LateQueue().double(), BITWISE[0], noticed=True)
    assert len([w for w in caught if "queue" in str(w.message)]) == 1
    assert same(ours, states)
    assert sharpness[1] == sharpness[3] == 0
    assert torch.equal(weights, stock), "what a row of the queue is overwritten with is the same"


def test_an_array_on_the_memory_of_weights() -> None:
    """It is moved with them: put back, it would undo the perturbation."""

    class FromArray(Stateful):
        def prepare(self) -> None:
            self.array = np.linspace(-1, 1, 18).reshape(3, 6)
            self.last.weight = nn.Parameter(torch.from_numpy(self.array))
            self.rows = self.array[::-2]

    model, twin = FromArray().double(), FromArray().double()
    assert np.shares_memory(model.last.weight.detach().numpy(), model.rows)
    twin.array = twin.rows = None
    spec = Spec("sam", "sam", {"rho": 0.3})
    assert torch.equal(run(model, spec)[0], run(twin, spec)[0])


def test_what_is_large_and_does_not_change_is_not_copied() -> None:
    model = stateful.Queue()
    model.register_buffer("bank", torch.zeros(2**20))
    frozen = nn.Linear(512, 512)
    model.frozen = frozen.requires_grad_(False)
    method = BITWISE[0].ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = steps_of(classification(8, torch.float32), 8)[0][0]
    for _ in range(3):
        method.backward(closures_of(model, [batch]))
    method.engine.state.begin(4)
    moment = method.engine.state.take(lambda: None)
    saved = sum(w.saved.numel() for w in moment.tensors.by_region.values() if w.saved is not None)
    assert saved <= model.queue.nbytes + 2**16


def test_what_services_hold_is_left_alone() -> None:
    """Objects that hold a lock are written to by others at any time."""

    class Logger:
        def __init__(self) -> None:
            self.lock, self.lines = threading.Lock(), []

    model, logger = Stateful().double(), Logger()
    model.first.register_forward_hook(lambda *_: logger.lines.append(1))
    run(model, BITWISE[1])
    assert len(logger.lines) == STEPS * 3


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
    run(model, BITWISE[0])
    assert model.stop
