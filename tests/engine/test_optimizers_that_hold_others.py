"""Base optimizers that hold another one, or are made of several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import flat
from torch import Tensor

from hf_sharpness import SAM, WSAM

((BATCH,),) = steps_of(classification(8), 8)


class Lookahead(torch.optim.Optimizer):
    """As it is copied around: without ``super().__init__()``."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.base.step()


class Inheriting(Lookahead):
    """Has its ``step`` from there."""


@pytest.mark.parametrize("kind", [Lookahead, Inheriting])
@pytest.mark.parametrize("scheduled_before", [True, False])
def test_other_optimizers_of_the_class_stay_as_they_are(scheduled_before: bool, kind: Any) -> None:
    def step(sharp: bool, base: type[torch.optim.Optimizer] | None = None) -> Tensor:
        torch.manual_seed(0)
        model = Net().double()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer: Any = kind(sgd) if base is None else sgd
        if scheduled_before:
            torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        method = WSAM(model, optimizer, mode="decoupled") if sharp else None

        def closure() -> Tensor:
            loss = model(**BATCH)["loss"]
            loss.backward()
            return loss

        method.backward(closure) if method else closure()
        optimizer.step()
        return flat(model)

    stock = step(False)
    torch.testing.assert_close(step(True), step(True, torch.optim.SGD), rtol=1e-12, atol=1e-13)
    assert torch.equal(step(False), stock)
    assert ("step" in vars(kind)) == (kind is Lookahead)
    assert not hasattr(kind.step, "hooked")


class Matrices(torch.optim.SGD):
    """Steps matrices itself, and has another optimizer for the rest."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__([p for p in params if p.ndim == 2], lr=0.1)
        self.optimizer = torch.optim.AdamW([p for p in params if p.ndim != 2])


def test_one_that_holds_another_for_other_parameters_is_refused() -> None:
    model = Net()
    with pytest.raises(ValueError, match="Matrices holds AdamW in its attribute `optimizer`"):
        SAM(model, Matrices(model.parameters()))


class Wrapper(torch.optim.SGD):
    """Has all parameters in its groups, and the one inside those that are trained."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, lr=0.1)
        self.optimizer = torch.optim.SGD([p for p in params if p.requires_grad], lr=0.1)


def test_one_that_holds_another_for_those_that_are_trained() -> None:
    model = Net()
    next(iter(model.parameters())).requires_grad_(False)
    assert isinstance(SAM(model, Wrapper(model.parameters())), SAM)
