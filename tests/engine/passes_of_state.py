"""What the tests of the state of passes share: methods that must change nothing, and a few steps of training."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import classification, held, steps_of
from models.state_in_objects import reset_script
from reference import Spec, flat
from torch import Tensor, nn

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


def descend(model: nn.Module, loss_of: Callable[[Tensor], Tensor], method: Any = None, steps: int = 6) -> Tensor:
    """The weights after steps of SGD on random inputs; a method makes them without a perturbation."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = method(model, optimizer, rho=0.0) if method else None
    for _ in range(steps):
        x = torch.randn(6, 4, dtype=torch.float64)

        def closure(x: Tensor = x) -> Tensor:
            loss = loss_of(x)
            loss.backward()
            return loss

        made.backward(closure) if made else closure()
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "teacher" not in name]


def run(model: nn.Module, spec: Spec | None, accumulation: int = 1, loss: Any = None, noticed: bool = False) -> Any:
    """A few steps, stock without a ``spec``. Returns the weights, the state after every step, and the sharpness."""
    reset_script()
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
