"""Losses that hold on to gradients, or lay them into memory of their own, as projected attacks and flat buffers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import Spec, flat
from torch import Tensor

METHODS = [
    Spec("sam", "sam", {"rho": 0.2}),
    Spec("sam-k3", "sam", {"rho": 0.2, "steps": 3}),
    Spec("wsam-coupled", "wsam", {"rho": 0.2, "mode": "coupled"}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.2, "mode": "decoupled"}),
    Spec("xsam", "xsam", {"rho": 0.2, "alpha_points": 3, "refresh": 1}),
]
ITEMS = classification(48)


class OfItsOwn:
    """Gradients are copied: nobody holds them."""

    def __init__(self, model: Any) -> None:
        self.parameters = list(model.parameters())

    def __call__(self) -> None:
        for parameter in self.parameters:
            parameter.grad = 2.0 * parameter.grad


class Backup(OfItsOwn):
    """A projected attack's: gradients are kept by name, and are put back as they are."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.kept: dict[int, Tensor] = {}

    def __call__(self) -> None:
        for number, parameter in enumerate(self.parameters):
            self.kept[number] = 2.0 * parameter.grad
            parameter.grad = self.kept[number]


class Flat(OfItsOwn):
    """All gradients lie in one tensor, which every call writes anew."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.memory = torch.zeros(sum(p.numel() for p in self.parameters), dtype=torch.float64)

    def __call__(self) -> None:
        gradients = [p.grad.flatten() for p in self.parameters]
        self.memory.copy_(2.0 * torch.cat(gradients))
        place = 0
        for parameter in self.parameters:
            parameter.grad = self.memory[place : place + parameter.numel()].view_as(parameter)
            place += parameter.numel()


def trained(spec: Spec, kind: type, accumulation: int) -> Tensor:
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method, ends = spec.ours(model, optimizer), kind(model)

    def closure(batch: Any) -> Tensor:
        loss = model(**batch)["loss"] / accumulation
        loss.backward()
        ends()
        return loss

    for step in steps_of(ITEMS, 8, accumulation):
        method.backward([lambda batch=batch: closure(batch) for batch in step])
        place = ends.parameters[0].grad
        if kind is Flat:
            assert place.data_ptr() == ends.memory.data_ptr()  # what the user does to it next counts
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", [Backup, Flat])
@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_gradients_that_are_held(spec: Spec, kind: type, accumulation: int) -> None:
    """The same training as with gradients that nobody holds."""
    weights, expected = trained(spec, kind, accumulation), trained(spec, OfItsOwn, accumulation)
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)
