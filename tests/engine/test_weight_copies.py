"""Copies of weights that torch keeps within a block of the user's: every pass sees the weights as they are."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import hf_sharpness
from hf_sharpness.methods import METHODS

X, Y = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
GIVEN: dict[str, dict[str, Any]] = {"sam": {}, "wsam": {"mode": "coupled"}, "xsam": {"refresh": 1}}


class Plain(nn.Module):
    """The same function as the parametrized model, without anything kept."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.values = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in model.parameters()])

    def forward(self, x: Tensor) -> Tensor:
        bias, g, v, last_bias, last_g, last_v = self.values
        hidden = torch.tanh(F.linear(x, g * v / v.norm(dim=1, keepdim=True), bias))
        return F.linear(hidden, last_g * last_v / last_v.norm(dim=1, keepdim=True), last_bias)


def parametrized() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(weight_norm(nn.Linear(5, 7)), nn.Tanh(), weight_norm(nn.Linear(7, 3))).double()


def train(model: nn.Module, name: str, block: Any, steps: int = 3, check: str = "error") -> tuple[list[Tensor], float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = hf_sharpness.SharpnessAware(METHODS[name](rho=0.3, **GIVEN[name]), model, optimizer, check=check)

    def closure() -> Tensor:
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    for _ in range(steps):
        with block():
            method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in model.parameters()], float(method.metrics["sharpness"])


@pytest.mark.parametrize("name", GIVEN)
def test_parametrized_weights_are_made_anew(name: str) -> None:
    """torch keeps the first pass's, whose graph is spent, until the block ends."""
    cached, sharpness = train(parametrized(), name, parametrize.cached)
    wanted, expected = train(Plain(parametrized()), name, contextlib.nullcontext)
    for a, b in zip(cached, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert sharpness == pytest.approx(expected, rel=1e-10)
    assert sharpness > 0.01


@pytest.mark.parametrize("name", GIVEN)
def test_autocasts_are_made_anew(name: str) -> None:
    def block() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))

    outside, sharpness = train(_Float(net()), name, block, 1, "off")
    model = net()
    forward = model.forward

    def inside(x: Tensor) -> Tensor:
        with block():
            return forward(x)

    model.forward = inside  # type: ignore[method-assign]
    wanted, expected = train(_Float(model), name, contextlib.nullcontext, 1, "off")
    assert all(torch.equal(a, b) for a, b in zip(outside, wanted, strict=True))
    assert sharpness == expected > 0.01


class _Float(nn.Module):
    """Float32 in, float32 out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float()).float()


def test_where_torch_keeps_them() -> None:
    """The private name that the package clears; this fails when it moves."""
    layer = weight_norm(nn.Linear(2, 2))
    with parametrize.cached():
        first = layer.weight
        assert layer.weight is first
        assert any(value is first for value in parametrize._cache.values())
        parametrize._cache.clear()
        assert layer.weight is not first
