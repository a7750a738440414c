"""What the Trainer adds to a sharpness-aware step beside transformers' own: operators are counted, not time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from models import Net, accumulate, classification, steps_of
from reference import Spec, by_name, flat
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from hf_sharpness.engine import Engine, after_step

ITEMS = classification(64)
METHODS = by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam")
FEW, MANY = 2, 12
MOST = 60
"""Operators on single numbers: means of the series, whether a loss is finite; a copy of each input for each pass."""


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class OfTheThirdStep(TrainerCallback):
    def __init__(self) -> None:
        self.operators = Operators()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.operators.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.operators.__exit__(None, None, None)


def net(layers: int) -> nn.Module:
    return Net(lambda: nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])).double()


def in_trainer(layers: int, accumulation: int, train: Any, **arguments: Any) -> Counter[str]:
    callback = OfTheThirdStep()
    common = {"gradient_accumulation_steps": accumulation, "max_steps": 4, "max_grad_norm": 0, "logging_steps": 100}
    train(net(layers), ITEMS, callbacks=[callback], learning_rate=0.1, **common, **arguments)
    return callback.operators.counts


def in_loop(layers: int, accumulation: int, spec: Spec | None) -> Counter[str]:
    model = net(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    method = None if spec is None else spec.ours(model, optimizer)
    for number, batches in enumerate(steps_of(ITEMS, 8, accumulation)[:3]):
        operators = Operators()
        closures = [lambda batch=batch: accumulate(model, batch, accumulation) for batch in batches]
        if number == 0 and method is not None:
            method.start_epoch()
        with operators:
            if method is None:
                torch.stack([closure() for closure in closures]).sum()
            else:
                method.backward(closures)
            optimizer.step()
            optimizer.zero_grad()
    return operators.counts


def added(spec: Spec, layers: int, accumulation: int, train: Any) -> Counter[str]:
    """Operators of our Trainer's step beyond a stock Trainer's, and beyond what the method itself takes in a loop."""
    sgd = {"optim_args": "momentum=0"}
    ours = in_trainer(layers, accumulation, train, **spec.arguments(), base_optim="sgd", **sgd)
    stock = in_trainer(layers, accumulation, train, stock=True, optim="sgd", **sgd)
    method, base = in_loop(layers, accumulation, spec), in_loop(layers, accumulation, None)
    counts = Counter(ours)
    for others, sign in ((stock, -1), (method, -1), (base, 1)):
        for name, number in others.items():
            counts[name] += sign * number
    return counts


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_what_the_trainer_adds_does_not_grow_with_the_model(spec: Spec, accumulation: int, train: Any) -> None:
    few, many = (added(spec, layers, accumulation, train) for layers in (FEW, MANY))
    assert {k: v for k, v in few.items() if v} == {k: v for k, v in many.items() if v}
    assert sum(number for number in few.values() if number > 0) <= MOST * accumulation


def test_on_an_accelerator_clipping_is_not_followed_by_element(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first two steps, and the last, which is logged."""
    by_element: list[int] = []
    arguments = {"optim": "wsam", "wsam_mode": "decoupled", "base_optim": "sgd", "optim_args": "momentum=0"}
    arguments |= {"max_steps": 6, "max_grad_norm": 0.05, "logging_steps": 100, "learning_rate": 0.1}

    def follow(*args: Any, **kwargs: Any) -> Any:
        by_element.append(1)
        return follow_(*args, **kwargs)

    follow_ = after_step.follow_
    monkeypatch.setattr(after_step, "follow_", follow)
    on_host = train(net(2), ITEMS, **arguments)
    assert not by_element, "values can be read there"
    monkeypatch.setattr(Engine, "on_cpu", False)
    on_device = train(net(2), ITEMS, **arguments)
    assert len(by_element) == 3
    torch.testing.assert_close(flat(on_device.model), flat(on_host.model), rtol=1e-9, atol=1e-12)
