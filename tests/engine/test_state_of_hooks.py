"""Hooks that a pass registers or takes off, as lazily installed ones are: a step leaves what one pass leaves."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes_of_state import descend
from torch import Tensor, nn

from hf_sharpness import SAM

STEPS = 12
"""Some of them are looked at closely, others not."""


class Lazy(nn.Module):
    """Registers a hook in its first pass, or in that of a later step."""

    def __init__(self, register: Callable[[Lazy], Any], first: int = 1) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register, self.first = register, first
        self.handle: Any = None
        self.passes = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes >= self.first:
            self.install()
        return self.head(torch.tanh(self.body(x))).square().mean()

    def install(self) -> None:
        if self.handle is None:
            self.handle = self.register(self)


class Flagged(Lazy):
    """A flag guards it, alone."""

    ready = False

    def install(self) -> None:
        if not self.ready:
            self.ready = True
            self.register(self)


class FlaggedInADict(Lazy):
    """Where nothing else changes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.flags = {"ready": False}

    def install(self) -> None:
        if not self.flags["ready"]:
            self.flags["ready"] = True
            self.register(self)


class Renewed(Lazy):
    """Takes the hook off and registers it anew in every pass."""

    def install(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = self.register(self)


def forward(model: Lazy) -> Any:
    return model.body.register_forward_hook(lambda module, args, output: output * 1.5)


def with_keywords(model: Lazy) -> Any:
    return model.body.register_forward_hook(lambda module, args, kwargs, output: output * 1.5, with_kwargs=True)


def partial(model: Lazy) -> Any:
    return model.body.register_forward_hook(functools.partial(_scaled, 1.5))


def _scaled(factor: float, module: Any, args: Any, output: Tensor) -> Tensor:
    return output * factor


def gathers(model: Lazy) -> Any:
    return model.body.register_forward_hook(lambda module, args, output: model.seen.append(output.detach()))


def before(model: Lazy) -> Any:
    return model.head.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))


def backward(model: Lazy) -> Any:
    return model.head.register_full_backward_hook(lambda module, inputs, outputs: tuple(g * 0.5 for g in inputs))


def on_a_parameter(model: Lazy) -> Any:
    return model.head.weight.register_hook(lambda gradient: gradient * 0.5)


def after_accumulation(model: Lazy) -> Any:
    def halve(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(0.5)

    return model.head.weight.register_post_accumulate_grad_hook(halve)


def of_torchs(model: Lazy) -> Any:
    return model.head.weight.register_hook(functools.partial(torch.mul, other=torch.tensor(0.5, dtype=torch.float64)))


def on_all(model: Lazy) -> Any:
    return model.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))


HOOKS = [
    forward,
    with_keywords,
    partial,
    gathers,
    before,
    backward,
    on_a_parameter,
    after_accumulation,
    of_torchs,
    on_all,
]


def trained(model: Lazy, with_method: bool) -> tuple[Tensor, list[Any]]:
    """The weights, and the hooks that there are at the end."""
    torch.manual_seed(0)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = descend(model, model, SAM if with_method else None, STEPS)
    weight = model.head.weight
    counts = [len(weight._backward_hooks or ()), len(weight._post_accumulate_grad_hooks or ()), len(model.seen)]
    for module in model.modules():
        counts += [len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)]
    return weights, counts


@pytest.mark.parametrize("first", [1, 6])
@pytest.mark.parametrize("kind", [Lazy, Flagged, FlaggedInADict, Renewed])
@pytest.mark.parametrize("register", HOOKS, ids=lambda hook: hook.__name__)
def test_a_hook_that_a_pass_registers_is_there_once(register: Any, kind: type[Lazy], first: int) -> None:
    if register is on_all and kind is Renewed:
        pytest.skip("a pre-hook of the module under way, taken off in its own call")
    expected, counts = trained(kind(register, first), False)
    weights, ours = trained(kind(register, first), True)
    assert ours == counts
    assert torch.equal(weights, expected)


@pytest.mark.parametrize("keywords", [False, True])
def test_the_order_of_hooks_stays(keywords: bool) -> None:
    """One that is taken off at the end of a pass, and is put back for the next, comes before one that stays."""

    def tripled(module: nn.Module, *args: Any) -> Any:
        assert len(args) == 2 + keywords
        return args[-1] * 3.0

    class Removing(Lazy):
        def install(self) -> None:
            if self.handle is None:
                self.handle = self.body.register_forward_hook(tripled, with_kwargs=keywords)
                self.body.register_forward_hook(lambda module, args, output: output + 1.0)

        def forward(self, x: Tensor) -> Tensor:
            output = super().forward(x)
            if self.passes == 4:
                self.handle.remove()
            return output

    assert torch.equal(trained(Removing(forward), True)[0], trained(Removing(forward), False)[0])


class ActNorm(nn.Module):
    """Initialises its weights from the first batch; a hook that has nothing to do with it removes itself there."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.shift = nn.Parameter(torch.zeros(5))
        self.ready = False
        self.handle = self.head.register_forward_hook(lambda module, args, output: self.handle.remove())

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if not self.ready:
            self.ready = True
            self.shift.data.copy_(features.detach().mean(0))
        return self.head(torch.tanh(features - self.shift)).square().mean()


class OnceByAHook(nn.Module):
    """The same by a hook that takes itself off."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.handle = self.body.register_forward_hook(self.initialise)

    def initialise(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        with torch.no_grad():
            self.body.bias.sub_(output.mean(0))
        self.handle.remove()
        return nn.functional.linear(args[0], self.body.weight, self.body.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))).square().mean()


@pytest.mark.parametrize("kind", [ActNorm, OnceByAHook])
def test_an_initialisation_that_depends_on_data_is_made_once(kind: type[nn.Module]) -> None:
    """Against SAM by hand, from the weights that the first pass has set."""
    torch.manual_seed(0)
    model = kind().double()
    twin = copy.deepcopy(model)
    method = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3)
    x = torch.randn(6, 4, dtype=torch.float64)

    def closure() -> Tensor:
        loss = model(x)
        loss.backward()
        return loss

    method.backward(closure)
    gradient: list[Tensor] = []
    for moved in range(2):
        twin.load_state_dict(model.state_dict())
        twin.ready = True
        twin.body._forward_hooks.clear()
        twin.head._forward_hooks.clear()
        if moved:
            with torch.no_grad():
                norm = torch.cat([g.flatten() for g in gradient]).norm()
                for parameter, g in zip(twin.parameters(), gradient, strict=True):
                    parameter.add_(g, alpha=0.3 / float(norm))
        twin.zero_grad()
        twin(x).backward()
        gradient = [p.grad.clone() for p in twin.parameters() if p.grad is not None]
    for parameter, expected in zip(model.parameters(), gradient, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("library", ["transformers.utils.output_capturing", "numpy"])
def test_a_librarys_hooks_stay(library: str) -> None:
    """It installs them once, and its flag says so, which stays too."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        return output * 1.5

    hook.__module__ = library
    model = Lazy(lambda model: model.body.register_forward_hook(hook))
    method = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1, check="off")
    passes = 0

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        loss = model(torch.ones(2, 4))
        loss.backward()
        return loss

    method.backward(closure)
    assert passes == 1
    assert len(model.body._forward_hooks) == 2
