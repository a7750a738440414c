"""What a training_step of the user's own does to gradients is seen, whichever way it is done; reading is nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interrupts import interrupted_everywhere
from models import Net, classification
from reference import flat
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_sharpness import Trainer
from hf_sharpness.engine.for_a_while import modes_on
from hf_sharpness.training import gradient_watch
from hf_sharpness.training.gradient_watch import GradientWatch


@pytest.fixture
def model() -> nn.Module:
    """Three parameters with a gradient, one without; the embedding's is sparse."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"table": nn.Embedding(5, 3, sparse=True), "linear": nn.Linear(3, 2)})
    layers["unused"] = nn.Linear(2, 1, bias=False)
    layers["linear"](layers["table"](torch.tensor([0, 2]))).sum().backward()
    return layers


@pytest.fixture
def watch(model: nn.Module) -> Iterator[GradientWatch]:
    watch = GradientWatch(model.parameters())
    yield watch
    watch.close()
    assert not modes_on(), "it leaves no mode behind"


def replaced(model: nn.Module) -> None:
    model["linear"].weight.grad = model["linear"].weight.grad.clone()


def dropped(model: nn.Module) -> None:
    model["linear"].weight.grad = None


def came(model: nn.Module) -> None:
    model["unused"].weight.grad = torch.zeros_like(model["unused"].weight)


def added_to(model: nn.Module) -> None:
    model["linear"](torch.ones(1, 3)).sum().backward()


def written(model: nn.Module) -> None:
    model["linear"].bias.grad[0] = 1


def through_data(model: nn.Module) -> None:
    model["linear"].weight.grad.data.mul_(0.5)


def through_a_view_of_data(model: nn.Module) -> None:
    model["linear"].weight.grad.data.view(-1)[:2] = 0


def other_memory(model: nn.Module) -> None:
    model["linear"].weight.grad.data = torch.ones_like(model["linear"].weight)


def sparse_values(model: nn.Module) -> None:
    model["table"].weight.grad._values().mul_(2)


def clipped(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(list(model["linear"].parameters()), 1e-3)


CHANGES = [replaced, dropped, came, added_to, written, through_data, through_a_view_of_data, other_memory]
CHANGES += [sparse_values, clipped]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change: Callable[[nn.Module], None], model: nn.Module, watch: GradientWatch) -> None:
    watch.note()
    change(model)
    assert watch.changed()
    watch.note()
    assert not watch.changed(), "it is watched anew"


def read(model: nn.Module) -> list[Tensor]:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [g.to_dense().norm() + g.data.to_dense().sum() for g in gradients]


def test_reading_is_no_change(model: nn.Module, watch: GradientWatch) -> None:
    watch.note()
    read(model)
    model["linear"].weight.data.add_(1)
    assert not watch.changed()


def test_without_the_mode_what_goes_through_data_is_not_looked_for(model: nn.Module, watch: GradientWatch) -> None:
    watch.note(through_data=False)
    assert not modes_on()
    through_data(model)
    assert not watch.changed()
    written(model)
    assert watch.changed()


def test_a_mode_of_the_programs_own_keeps_its_place(model: nn.Module, watch: GradientWatch) -> None:
    """Under one of the user's own the two could not leave in order: versions alone tell then."""

    class Own(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Own():
        assert modes_on()
        watch.note()
    assert not modes_on()
    written(model)
    assert watch.changed()


def test_a_closed_watch_keeps_nothing_alive(model: nn.Module, watch: GradientWatch) -> None:
    watch.note()
    watch.close()
    watch.close()
    assert not watch.noted
    assert watch.aliases is None


class Overrides(Trainer):
    """With a ``training_step`` of its own, in which gradients are watched."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().training_step(*args, **kwargs)


def test_an_interrupt_of_a_training(train: Any) -> None:
    """Wherever it begins or ends to watch gradients: afterwards nothing of that is on, and the weights are unmoved."""
    items = classification(8, torch.float32)
    arguments = {"optim": "sam", "base_optim": "sgd", "max_steps": 1, "trainer_class": Overrides}

    def run() -> None:
        ended = train(Net(), items, **arguments, catch=KeyboardInterrupt)
        weights.append(flat(ended.model))
        if ended.error is not None:
            assert any(torch.equal(weights[-1], clean) for clean in (flat(Net()), weights[0]))
            raise ended.error

    weights: list[Tensor] = []
    run()
    for number in interrupted_everywhere(run, (gradient_watch.__file__,), ("note", "close")):
        assert not modes_on(), number
