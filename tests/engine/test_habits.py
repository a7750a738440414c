"""Closures that do more with gradients than to leave them: read them, and differentiate inside."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from habits import BATCH, EXACT, Closure
from models import Net
from torch import Tensor, nn
from torch.nn import functional as F

from hf_sharpness import SAM, WSAM, XSAM

RHO = 0.3


class Potential(nn.Module):
    """An energy whose forces are its own derivative; asks for the inputs' gradient itself."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        energy = self.net(x).squeeze(1)
        return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


def forces(model: Potential) -> Tensor:
    energy, force = model(BATCH["x"])
    return (energy - BATCH["labels"]).square().mean() + (force - torch.sin(BATCH["x"])).square().mean()


def penalty(model: Potential) -> Tensor:
    """A gradient penalty that is left out where gradients are off, as an evaluation would do."""
    loss = model.net(BATCH["x"]).squeeze(1).sub(BATCH["labels"]).square().mean()
    if torch.is_grad_enabled():
        inner = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        loss = loss + 5 * sum(g.square().sum() for g in inner)
    return loss


def jacobian(model: Potential) -> Tensor:
    rows = torch.autograd.functional.jacobian(lambda x: model.net(x).sum(0), BATCH["x"], create_graph=True)
    return model.net(BATCH["x"]).squeeze(1).sub(BATCH["labels"]).square().mean() + rows.square().mean()


def by_backward(loss_of: Callable[[Potential], Tensor]) -> Callable[[Potential], Closure]:
    def make(model: Potential) -> Closure:
        def closure() -> Tensor:
            loss = loss_of(model)
            loss.backward()
            return loss

        return closure

    return make


def cached(model: Potential) -> Closure:
    """Gradient caching: the loss on detached features, then their gradient through the body, piece by piece."""
    body, head = model.net[:2], model.net[2]

    def closure() -> Tensor:
        with torch.no_grad():
            features = torch.cat([body(part) for part in BATCH["x"].split(4)])
        features.requires_grad_()
        loss = head(features).squeeze(1).sub(BATCH["labels"]).square().mean()
        loss.backward()
        surrogate = sum((body(x) * g).sum() for x, g in zip(BATCH["x"].split(4), features.grad.split(4), strict=True))
        surrogate.backward()
        return loss.detach() + 0.1 * features.grad.square().sum().sqrt()

    return closure


def surgery(model: Potential) -> Closure:
    """Two tasks' gradients, the second one without its part along the first; the loss returned tells of it."""
    params = list(model.parameters())

    def closure() -> Tensor:
        out = model.net(BATCH["x"]).squeeze(1)
        first, second = (out - BATCH["labels"]).square().mean(), (out - BATCH["x"][:, 0]).abs().mean()
        for p in params:
            p.grad = None
        first.backward(retain_graph=True)
        a = [p.grad.clone() for p in params]
        for p in params:
            p.grad = None
        second.backward()
        dot = sum((x * p.grad).sum() for x, p in zip(a, params, strict=True))
        size = sum(x.square().sum() for x in a)
        for x, p in zip(a, params, strict=True):
            p.grad = p.grad + x - dot.clamp(max=0) / size * x
        return (first + second).detach() + 0.05 * dot

    return closure


CLOSURES: dict[str, Callable[[Potential], Closure]] = {
    "forces": by_backward(forces),
    "penalty": by_backward(penalty),
    "jacobian": by_backward(jacobian),
    "cached": cached,
    "surgery": surgery,
}


class ByHand:
    """The methods' gradients from whole passes of a closure, each begun without gradients."""

    def __init__(self, make: Callable[[Potential], Closure]) -> None:
        self.model = Potential()
        self.closure = make(self.model)
        self.params = list(self.model.parameters())
        self.w = [p.detach().clone() for p in self.params]

    def at(self, *terms: tuple[float | Tensor, list[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            for index, (p, w) in enumerate(zip(self.params, self.w, strict=True)):
                p.copy_(w + sum(factor * v[index] for factor, v in terms))
                p.grad = None
        loss = self.closure().detach()
        return loss, [p.grad.clone() for p in self.params]

    def two(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        _, g = self.at()
        size = norm(g)
        return g, self.at((RHO / size, g))[1], size

    def sam(self) -> list[Tensor]:
        return self.two()[1]

    def coupled(self, a: float) -> list[Tensor]:
        g, above, _ = self.two()
        return [(1 - a) * x + a * y for x, y in zip(g, above, strict=True)]

    def xsam(self) -> tuple[float, list[Tensor]]:
        g, above, size = self.two()
        v0, v1 = [x / size for x in g], [y / norm(above) for y in above]
        psi = torch.arccos(sum((x * y).sum() for x, y in zip(v0, v1, strict=True)).clamp(-1, 1))
        found = []
        for i in range(21):
            alpha = i / 10
            c0, c1 = torch.sin((1 - alpha) * psi) / torch.sin(psi), torch.sin(alpha * psi) / torch.sin(psi)
            loss, _ = self.at((2 * RHO * c0, v0), (2 * RHO * c1, v1))
            found.append((float(loss), -alpha, [c0 * x + c1 * y for x, y in zip(v0, v1, strict=True)]))
        _, alpha, v = max(found, key=lambda f: f[:2])
        return -alpha, [norm(above) * x for x in v]


def norm(vector: list[Tensor]) -> Tensor:
    return torch.sqrt(sum(x.square().sum() for x in vector))


def assert_gradient(model: nn.Module, expected: list[Tensor]) -> None:
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, **EXACT)


@pytest.mark.parametrize("name", CLOSURES)
@pytest.mark.parametrize("number", [1, 2])
def test_xsams_search_has_the_derivatives_that_the_loss_is_made_from(name: str, number: int) -> None:
    """The same alpha* as by hand, in a watched step and in one that is not."""
    alpha, expected = ByHand(CLOSURES[name]).xsam()
    model = Potential()
    method = XSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, refresh=1)
    for _ in range(number):
        for p in model.parameters():
            p.grad = None
        method.backward(CLOSURES[name](model))
    assert method.alpha == pytest.approx(alpha)
    assert_gradient(model, expected)


def test_a_loss_that_begins_to_differentiate_in_a_later_step() -> None:
    """Not seen in a first pass that is watched (a penalty every few steps): the probe itself notices."""
    model = Potential()
    method = XSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, refresh=1)
    method.engine.habits.first_pass = lambda closure, *args, **kwargs: closure()
    method.backward(by_backward(forces)(model))
    alpha, expected = ByHand(CLOSURES["forces"]).xsam()
    assert method.alpha == pytest.approx(alpha)
    assert_gradient(model, expected)


def test_an_ordinary_loss_is_probed_without_gradients() -> None:
    model = Net().double()
    graphs: Any = SimpleQueue()  # a list would be put back after every pass but the first

    def closure() -> Tensor:
        loss = model(**BATCH)["loss"]
        graphs.put(loss.requires_grad)
        loss.backward()
        return loss

    XSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), search="grid", check="off").backward(closure)
    assert [graphs.get() for _ in range(graphs.qsize())] == [True, True] + [False] * 21


def hooked(hidden: Tensor) -> None:
    hidden.register_hook(lambda g: g)


@pytest.mark.parametrize("ask", [hooked, torch.Tensor.retain_grad], ids=["register_hook", "retain_grad"])
def test_a_loss_that_asks_for_gradients_of_what_it_computes(ask: Callable[[Tensor], None]) -> None:
    """Which torch refuses where none is computed: the search has them."""
    twin = Net().double()

    def closure(model: Net, ask: Callable[[Tensor], None]) -> Closure:
        def run() -> Tensor:
            logits = model(BATCH["x"])["logits"]
            ask(logits)
            loss = F.cross_entropy(logits, BATCH["labels"])
            loss.backward()
            return loss

        return run

    model = Net().double()
    XSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO).backward(closure(model, ask))
    XSAM(twin, torch.optim.SGD(twin.parameters(), lr=0.1), rho=RHO).backward(closure(twin, lambda logits: None))
    assert_gradient(model, [p.grad for p in twin.parameters()])


@pytest.mark.parametrize("name", CLOSURES)
def test_a_replay_begins_as_a_first_pass_does(name: str) -> None:
    """Coupled WSAM's second gradient is added to the first: not within a closure that reads or drops gradients."""
    hand = ByHand(CLOSURES[name])
    for method, expected in ((SAM, hand.sam()), (WSAM, hand.coupled(1.5))):
        model = Potential()
        options = {"mode": "coupled", "gamma": 0.6} if method is WSAM else {}
        method(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, **options).backward(CLOSURES[name](model))
        assert_gradient(model, expected)
