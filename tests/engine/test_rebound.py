"""Losses that bind weights to other memory, as adversarial training on the weights does to put them back."""

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
STEPS = [step[0] for step in steps_of(classification(40), 8)]


def attack(model: Any, batch: Any, rebinds: bool) -> Tensor:
    """The loss, and that after a fixed move of the weights, which are put back by a new tensor or in place."""
    loss = model(**batch)["loss"]
    loss.backward()
    backup = {name: p.data.clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.data.add_(0.01)
    attacked = model(**batch)["loss"]
    if torch.is_grad_enabled():
        gradients = torch.autograd.grad(attacked, list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad += gradient
    for name, parameter in model.named_parameters():
        if rebinds:
            parameter.data = backup[name]
        else:
            parameter.data.copy_(backup[name])
    return (loss + attacked).detach()


def trained(spec: Spec, rebinds: bool) -> tuple[Tensor, list[float]]:
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = spec.ours(model, optimizer)
    norms = []
    for batch in STEPS:
        method.backward(lambda batch=batch: attack(model, batch, rebinds), measure=True)
        optimizer.step()
        optimizer.zero_grad()
        norms.append(float(method.metrics["perturbation_norm"]))
    return flat(model), norms


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_new_memory_is_followed(spec: Spec) -> None:
    """The same training as with weights that are put back in place."""
    weights, norms = trained(spec, True)
    expected, expected_norms = trained(spec, False)
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)
    assert norms == pytest.approx(expected_norms)


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_weights_after_an_error_behind_it(spec: Spec) -> None:
    model = Net().double()
    method = spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = flat(model)

    def closure() -> Tensor:
        loss = attack(model, STEPS[0], True)
        if not torch.equal(flat(model), before):
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        method.backward(closure)
    assert torch.equal(flat(model), before)
