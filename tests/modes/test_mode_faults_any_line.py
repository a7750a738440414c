"""An interrupt at any line of the package: the weights are put back, and the training goes on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from faults import ITEMS, few_probes
from models import Net, steps_of
from reference import Spec, flat
from specs_of_modes import BASE, DEEP, METHODS, scoped
from torch import Tensor, nn

import hf_sharpness
from hf_sharpness.engine.for_a_while import modes_on

ALL = [*METHODS, *DEEP, *[scoped(spec, "micro_batch") for spec in METHODS if spec.method != "xsam"]]
PACKAGE = str(Path(hf_sharpness.__file__).parent)
READING = f"{PACKAGE}/engine/state/"
"""Code that looks for state by the thousand lines, and changes nothing while it does."""


def is_reading(frame: FrameType | None, depth: int = 6) -> bool:
    """Whether the frame, or one of its callers, is of that code."""
    return (
        frame is not None
        and depth > 0
        and (frame.f_code.co_filename.startswith(READING) or is_reading(frame.f_back, depth - 1))
    )


class Tripwire:
    """Raises once, when the n-th line of this package is about to run (0: never); counts the lines.

    Lines that only read, over and over, count once; some of them are made to tolerate errors.
    """

    def __init__(self, number: int = 0, error: type[BaseException] = KeyboardInterrupt):
        self.number, self.error, self.lines = number, error, 0
        self.where = ""
        self.read: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Tripwire:
        self.before = sys.gettrace()
        sys.settrace(self.enter_frame)
        return self

    def __exit__(self, *args: Any) -> None:
        sys.settrace(self.before)

    def enter_frame(self, frame: FrameType, event: str, arg: Any) -> Callable | None:
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
        place = frame.f_code.co_filename, frame.f_lineno
        self.read[place] += event == "line" and place[0].startswith(READING)
        if event == "line" and self.read[place] <= 1:
            self.lines += 1
            if self.lines == self.number:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise (KeyboardInterrupt if is_reading(frame) else self.error)("boom")
        return self.line


class Loop:
    """A plain loop of which one step has been made."""

    def __init__(self, spec: Spec, accumulation: int):
        self.model = Net(lambda: nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(8)))
        self.optimizer = BASE.torch(self.model.parameters())
        self.method = few_probes(spec).ours(self.model, self.optimizer)
        self.steps = steps_of(ITEMS, 8, accumulation)
        torch.manual_seed(1)
        self.backward(0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self, number: int) -> None:
        def closure(batch: dict[str, Tensor], parts: int) -> Tensor:
            loss = self.model(**batch)["loss"] / parts
            loss.backward()
            return loss.detach()

        step = self.steps[number]
        self.method.backward([lambda b=batch: closure(b, len(step)) for batch in step])


@pytest.mark.parametrize(
    ("spec", "accumulation", "every"),
    [
        *[pytest.param(spec, accumulation, 1, marks=pytest.mark.slow) for spec in ALL for accumulation in (1, 3)],
        *[(spec, 1, 10) for spec in METHODS if spec.method == "sam"],
    ],
    ids=str,
)
@pytest.mark.shows(
    mode="Exception or interrupt at any line of any pass",
    brief="Exception or Ctrl-C anywhere in a step",
    result="clean",
)
def test_an_interrupt_at_any_line(spec: Spec, accumulation: int, every: int) -> None:
    """Every line of this package that a step comes past raises once, or one in so many: the weights are those before
    the step, bit for bit, nothing is held, and the next step goes through."""
    loop = Loop(spec, accumulation)
    with Tripwire() as wire:
        loop.backward(1)
    total = wire.lines
    assert total > 100
    for number in range(1, total + 1, every):
        loop.optimizer.zero_grad()
        before = flat(loop.model)
        error = (KeyboardInterrupt, RuntimeError)[number % 2]
        with Tripwire(number, error) as wire:
            try:
                loop.backward(1)
            except (error, KeyboardInterrupt) as raised:
                assert "boom" in str(raised)  # noqa: PT017
            else:
                assert wire.lines < number, "fewer lines came by, as some is known from the step before"
        assert torch.equal(flat(loop.model), before), wire.where
        assert not modes_on(), wire.where
    loop.optimizer.zero_grad()
    loop.backward(1)
    loop.optimizer.step()
    assert flat(loop.model).isfinite().all()


def test_the_tripwire_reaches_every_layer() -> None:
    """Guards the walk: a step of every method passes lines of each module that moves weights."""
    seen = set()

    class Noting(Tripwire):
        def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
            seen.add(Path(frame.f_code.co_filename).name)
            return self.line

    for spec in METHODS:
        loop = Loop(spec, 1)
        with Noting():
            loop.backward(1)
    assert {"engine.py", "passes.py", "lengths.py", "state.py", "sam.py", "wsam.py", "xsam.py"} <= seen
