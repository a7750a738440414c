"""The step at which a schedule begins its last fall, against what the schedule's settings say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.optim import lr_scheduler
from transformers import get_scheduler

from hf_sharpness import SAM
from hf_sharpness.engine.decay import decay_step, last_fall


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)


def wsd(base: Any, warmup: int, stable: int, decay: int, **options: Any) -> Any:
    options = {"num_stable_steps": stable, "num_decay_steps": decay} | options
    return get_scheduler("warmup_stable_decay", base, warmup, scheduler_specific_kwargs=options)


@pytest.mark.parametrize("kind", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_warmup_stable_decay(kind: str, floor: float) -> None:
    """Where the schedule's own arguments say; with a floor that it stays on, too."""
    for warmup, stable, decay in ((5, 60, 35), (0, 10, 90), (10, 1, 4), (3, 900, 97)):
        total = warmup + stable + decay
        schedule = wsd(optimizer(), warmup, stable, decay, decay_type=kind, min_lr_ratio=floor)
        assert decay_step(schedule, total) == warmup + stable
        if floor:
            assert decay_step(schedule, total + 20) == warmup + stable


def sequential(base: torch.optim.Optimizer) -> Any:
    stay = lr_scheduler.ConstantLR(base, 1.0, 30)
    fall = lr_scheduler.LinearLR(base, 1.0, 0.01, 10)
    return lr_scheduler.SequentialLR(base, [stay, fall], [30])


TORCHS = {
    "sequential": (sequential, 40, 30),
    "one-cycle": (lambda base: lr_scheduler.OneCycleLR(base, 0.1, total_steps=40, pct_start=0.25), 40, 9),
    "milestones": (lambda base: lr_scheduler.MultiStepLR(base, [20, 30]), 40, 19),
    "restarts": (lambda base: lr_scheduler.CosineAnnealingWarmRestarts(base, 10), 40, 30),
    "lambda": (lambda base: lr_scheduler.LambdaLR(base, lambda k: 1.0 if k < 25 else 0.9 ** (k - 24)), 40, 24),
}


@pytest.mark.parametrize("name", TORCHS)
def test_schedulers_of_torch(name: str) -> None:
    """Found without a trace: the optimizer's learning rate and the scheduler go on from where they were."""
    make, total, expected = TORCHS[name]
    base, twin = optimizer(), optimizer()
    schedule, untouched = make(base), make(twin)
    assert decay_step(schedule, total) == expected
    for _ in range(total - 1):
        assert base.param_groups[0]["lr"] == twin.param_groups[0]["lr"]
        for each, its in ((base, schedule), (twin, untouched)):
            each.step()
            its.step()


def test_the_last_fall_of_numbers() -> None:
    assert last_fall([1, 1, 1, 0.5, 0.2]) == 2
    assert last_fall([0.5, 0.2, 1, 1, 0.5, 0.5, 0.1, 0.1]) == 3
    assert last_fall([1, 0.9, 0.8]) == 0
    assert last_fall([0, 0.5, 1]) is None
    assert last_fall([1.0, 1 + 1e-15, 1.0, 1.0]) is None
    assert last_fall([1.0]) is last_fall([]) is None


def test_accelerates_scheduler_steps_once_for_every_process() -> None:
    accelerator = Accelerator(cpu=True)
    base = optimizer()
    prepared = accelerator.prepare(base, wsd(base, 5, 60, 35))
    assert decay_step(prepared[1], 100) == 65


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: get_scheduler("constant", base), "does not fall at its end"),
        (lambda base: get_scheduler("linear", base, 0, 100), "falls from its first step on"),
        (lambda base: get_scheduler("cosine", base, 0, 100), "falls from its first step on"),
        (lambda base: wsd(base, 5, 200, 35), "does not fall at its end"),
        (lambda base: lr_scheduler.ReduceLROnPlateau(base), "cannot be known in advance"),
        (lambda base: object(), "cannot be known in advance"),
        (lambda base: None, "give scheduler"),
    ],
)
def test_schedules_without_such_a_step(make: Any, message: str) -> None:
    base = optimizer()
    with pytest.raises(ValueError, match=f"decay.*{message}"):
        decay_step(make(base), 100)


def test_a_scheduler_that_has_stepped_is_refused() -> None:
    """Its past is not to be seen; torch's LambdaLR says all of it at any time."""
    base = optimizer()
    schedule = sequential(base)
    for _ in range(3):
        base.step()
        schedule.step()
    with pytest.raises(ValueError, match="has made steps already"):
        decay_step(schedule, 40)
    late = wsd(base, 5, 60, 35)
    late.last_epoch = 80
    assert decay_step(late, 100) == 65


def test_the_loop_takes_the_scheduler() -> None:
    model = torch.nn.Linear(2, 2)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SAM(model, base, start="decay", total_steps=100, scheduler=wsd(base, 5, 60, 35))
    assert method.engine.phase.first == 65
    with pytest.raises(ValueError, match="give scheduler"):
        SAM(model, base, start="decay", total_steps=100)
    with pytest.raises(ValueError, match="give total_steps"):
        SAM(model, base, start="decay", scheduler=wsd(base, 5, 60, 35))
