"""Compiled models are known as such, however they were compiled, and are compiled no more often for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes_of_state import descend
from torch import Tensor, nn

from hf_sharpness import SAM
from hf_sharpness.engine.compiled import is_compiled, plain_name, unwrapped


class Layer(nn.Module):
    """One of the user's own: torch does not compile its Sequential in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()  # type: ignore[no-any-return]


class Model(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.layer(x))


def wrapped(model: nn.Module, backend: Any) -> nn.Module:
    return torch.compile(model, backend=backend)  # type: ignore[no-any-return]


def in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


def inner(model: nn.Module, backend: Any) -> nn.Module:
    model.layer.compile(backend=backend)  # type: ignore[operator]
    return model


COMPILERS = [wrapped, in_place, inner]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_it_is_known(compiler: Callable[..., nn.Module]) -> None:
    model = Model()
    assert not is_compiled(model)
    compiled = compiler(model, "eager")
    assert is_compiled(compiled)
    assert unwrapped(compiled) is model
    assert {plain_name(n) for n, _ in compiled.named_parameters()} == {n for n, _ in Model().named_parameters()}


@pytest.mark.checked
@pytest.mark.parametrize("compiler", COMPILERS)
def test_looking_closely_compiles_nothing_more(compiler: Callable[..., nn.Module]) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = compiler(Model().double(), backend)
    descend(compiled, lambda x: compiled(x).square().mean(), SAM, steps=3)
    assert len(graphs) == 1
