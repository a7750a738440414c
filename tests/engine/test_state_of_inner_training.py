"""What a pass trains besides the model, a critic's optimizer with its schedule, and teachers within wrappers."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from passes_of_state import descend
from torch import Tensor, nn
from torch.optim import Adam, lr_scheduler

from hf_sharpness import SAM

STEPS = 12

Extra = Callable[[nn.Module, Tensor], Tensor]


class Critic:
    """Trained in the pass that it is asked in."""

    def __init__(self, schedule: Callable[[Any], Any] | None, prepare: bool = False) -> None:
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1).double()
        self.optimizer: Any = Adam(self.layer.parameters(), lr=0.1)
        self.scheduler = schedule(self.optimizer) if schedule else None
        if prepare:
            self.optimizer = Accelerator(cpu=True).prepare(self.optimizer)

    def __call__(self, model: nn.Module, output: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        error = self.layer(output.detach()).square().mean()
        error.backward()
        self.optimizer.step()
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(float(error.detach()))
        elif self.scheduler is not None:
            self.scheduler.step()
        return -0.3 * self.layer(output).mean()

    def state(self) -> Any:
        scheduler: Any = self.scheduler
        return self.optimizer.param_groups[0]["lr"], None if scheduler is None else scheduler.last_epoch


class Teacher:
    """A momentum copy of the model, called within what wraps it."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        torch.manual_seed(1)
        inner = nn.Sequential(nn.Linear(4, 3).requires_grad_(False), nn.BatchNorm1d(3, affine=False))
        self.wrapped = wrap(inner.double().eval())

    def __call__(self, model: Any, output: Tensor) -> Tensor:
        with torch.no_grad():
            for own, other in zip(self.wrapped.parameters(), model.parameters(), strict=True):
                own.mul_(0.5).add_(other, alpha=0.5)
            wanted = self.wrapped(torch.ones_like(output[:, :1]).expand(-1, 4))
        return (output - wanted).square().mean()

    def state(self) -> Any:
        return [p.tolist() for p in self.wrapped.parameters()]


class Recorded:
    """What an array of a subclass of NumPy's holds scales the loss, and is written by it."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __call__(self, model: Any, output: Tensor) -> Tensor:
        self.array[...] = self.array * 0.9
        return output.mean() * float(np.asarray(self.array).ravel()[0])

    def state(self) -> Any:
        return np.asarray(self.array).tolist()


def trained(extra: Any, with_method: bool) -> tuple[Tensor, Any]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()

    def loss_of(x: Tensor) -> Tensor:
        output = model(x)
        loss: Tensor = output.square().mean() + extra(model, output)
        return loss

    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="hf_sharpness")
        weights = descend(model, loss_of, SAM if with_method else None, STEPS)
    return weights, extra.state()


def check(make: Callable[[], Any]) -> None:
    expected, state = trained(make(), False)
    weights, ours = trained(make(), True)
    assert ours == state
    assert torch.equal(weights, expected)


SCHEDULES: dict[str, Any] = {
    "none": None,
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.8)], milestones=[5]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_inner_optimizers_schedule_goes_on_once(schedule: str) -> None:
    check(lambda: Critic(SCHEDULES[schedule]))


def test_an_inner_optimizer_that_accelerate_has_prepared() -> None:
    check(lambda: Critic(None, prepare=True))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda module: module,
    "data-parallel": nn.DataParallel,
    "compiled": lambda module: torch.compile(module, backend="eager"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_teacher_within_a_wrapper(wrapper: str) -> None:
    """Also in a step that is looked at closely, in which modules outside the model are met."""
    check(lambda: Teacher(WRAPPERS[wrapper]))


def mapped() -> Any:
    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, float, shape=(2, 2))
    array[...] = 1.0
    return array


ARRAYS: dict[str, Callable[[], Any]] = {
    "plain": lambda: np.ones((2, 2)),
    "matrix": lambda: np.ones((2, 2)).view(np.matrix),
    "mapped": mapped,
    "masked": lambda: np.ma.MaskedArray(np.ones((2, 2)), mask=np.eye(2) > 2),
}


@pytest.mark.parametrize("array", ARRAYS)
def test_subclasses_of_numpys_array(array: str) -> None:
    check(lambda: Recorded(ARRAYS[array]()))
