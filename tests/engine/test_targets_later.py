"""The parameters that are perturbed, where a training replaces modules or takes parameters out of the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Record
from torch import Tensor, nn

from hf_sharpness import SAM


@pytest.mark.parametrize("names", ["last", "la*, norm"])
def test_a_module_that_is_replaced_is_perturbed(names: str) -> None:
    """A head for other classes, say, whose parameters take the place of the old ones in the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body, model.norm, model.last = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SAM(model, optimizer, rho=0.3, target_modules=names)
    found = []

    def closure() -> Tensor:
        found.append([p.detach().clone() for p in model.parameters()])
        loss: Tensor = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    record = Record()
    for step in range(2):
        if step == 1:
            model.last = nn.Linear(5, 3)
            optimizer.param_groups[0]["params"] = list(model.parameters())
        method.backward(closure, measure=True)
        record.items.append(float(method.metrics["perturbation_norm"]))
        optimizer.step()
        optimizer.zero_grad()
    assert record.items == pytest.approx([0.3, 0.3], rel=1e-5)


def test_targets_that_are_taken_out_of_the_optimizer_one_after_the_other() -> None:
    """As a callback does that freezes layer by layer."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SAM(model, optimizer, rho=0.3, target_modules="0,2")

    def closure() -> Tensor:
        loss: Tensor = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    method.backward(closure)
    optimizer.param_groups[0]["params"] = list(model[2].parameters())
    method.backward(closure, measure=True)
    assert float(method.metrics["perturbation_norm"]) == pytest.approx(0.3, rel=1e-5)
    extra = nn.Parameter(torch.zeros(1))
    optimizer.param_groups[0]["params"] = [extra]
    with pytest.warns(UserWarning, match="target_modules='0,2'.*without a perturbation"):
        method.backward(lambda: _with(closure, extra))


def _with(closure: Any, extra: Tensor) -> Tensor:
    (extra * 2).sum().backward()
    return closure()
