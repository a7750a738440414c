"""The wrapper of the outermost training_step looks like what it wraps, makes one pass for calls by others, and goes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Net
from outermost import ITEMS, OPTIONS, SAM, Ours, every_method
from own_steps import MEMORY, backward
from transformers import TrainerCallback

from hf_sharpness.training.outermost import unwrapped


def test_the_wrapper_looks_like_what_it_wraps(train: Any) -> None:
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            step = vars(run_of[0])["training_step"]
            seen.append((step.__name__, step.__doc__, step.__wrapped__.__func__))

    class Own(Ours):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            run_of.append(self)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            """Mine."""
            return super().training_step(*args, **kwargs)

    run_of: list[Any] = []
    train(Net().double(), ITEMS, trainer_class=Own, callbacks=[Look()], **OPTIONS, **SAM)
    assert seen[0] == ("training_step", "Mine.", Own.training_step)


def test_an_attribute_of_the_users_own_is_wrapped_and_put_back(train: Any) -> None:
    """Replaced before training; doubled, it is the whole step that is repeated."""

    class Own(Ours):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stock = self.training_step

            def mine(model: Any, inputs: Any, *args: Any) -> Any:
                loss = stock(model, inputs, *args)
                backward(self, model)
                return loss

            self.training_step = self.mine = mine

    class Alike(Ours):
        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(model, *args, **kwargs)
            backward(self, model)
            return loss

    run, alike = (train(Net().double(), ITEMS, trainer_class=c, **OPTIONS, **SAM) for c in (Own, Alike))
    assert torch.equal(run.weights[-1], alike.weights[-1])
    assert vars(run.trainer)["training_step"] is run.trainer.mine


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_wrapper_is_gone_after_an_error(error: type, train: Any) -> None:
    class Own(Ours):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            super().training_step(*args, **kwargs)
            raise error("mine")

    run = train(Net().double(), ITEMS, trainer_class=Own, catch=error, **OPTIONS, **SAM)
    assert run.error is not None
    assert "training_step" not in vars(run.trainer)
    assert run.trainer._sharpness_steps is None


class Pickled(TrainerCallback):
    """Copies the trainer in the middle of training."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.states.append(self.trainer.__getstate__())
        self.copy = copy.copy(self.trainer)


def test_a_copy_made_in_training_has_no_wrapper(train: Any) -> None:
    callback = Pickled()

    class Own(Ours):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            callback.trainer = self

    run = train(Net().double(), ITEMS, trainer_class=Own, callbacks=[callback], **OPTIONS, **SAM)
    assert len(callback.states) == 3
    assert all("training_step" not in state and "_engine" not in state for state in callback.states)
    assert callback.copy.training_step.__func__ is Ours.training_step
    assert "training_step" not in vars(run.trainer)


class Small(Ours):
    """As much of a Trainer as can be pickled."""

    def __init__(self) -> None:
        self.kept = 1


def test_pickled() -> None:
    small = Small()
    vars(small)["training_step"] = _wrapper()
    again = pickle.loads(pickle.dumps(small))
    assert vars(again) == {"kept": 1}
    attributes = {"training_step": _wrapper(print)}
    unwrapped(attributes)
    assert attributes == {"training_step": print}


def _wrapper(before: Callable | None = None) -> Callable:
    def training_step() -> None: ...

    training_step._stands_before = before
    return training_step


def test_calls_by_others_make_one_pass(train: Any) -> None:
    """The class's function called with the trainer, by a callback, and outside of training."""

    class Plain(Ours):
        passes = 0

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return super().training_step(*args, **kwargs)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            Plain.passes += 1
            return super().compute_loss(*args, **kwargs)

    class Calling(TrainerCallback):
        counted: list[int] = []  # noqa: RUF012

        def on_step_end(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            for call in (
                lambda: self.trainer.training_step(model, dict(MEMORY)),
                lambda: type(self.trainer).training_step(self.trainer, model, dict(MEMORY)),
            ):
                before = Plain.passes
                call()
                self.counted.append(Plain.passes - before)
                model.zero_grad()

    callback = Calling()

    class Own(Plain):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            callback.trainer = self

    run = train(Net().double(), ITEMS, trainer_class=Own, callbacks=[callback], **OPTIONS, **SAM)
    assert callback.counted == [1] * 6
    assert Plain.passes == 3 + 6  # further passes do not count
    plain = train(Net().double(), ITEMS, **OPTIONS, **SAM)
    assert torch.equal(run.weights[-1], plain.weights[-1])
    run.trainer.training_step(run.model, dict(MEMORY))
    assert Plain.passes == 3 + 6 + 1


def test_a_trainer_trained_by_a_callback_takes_its_own_steps(train: Any) -> None:
    inner = []

    class Nested(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            inner.append(train(Net().double(), ITEMS, **OPTIONS, **SAM))

    outer = train(Net().double(), ITEMS, callbacks=[Nested()], **OPTIONS, **SAM)
    assert torch.equal(inner[0].weights[-1], outer.weights[-1])
    assert inner[0].series("sharpness") == outer.series("sharpness")


@every_method
@pytest.mark.parametrize("place", ["step", "loss"])
def test_accelerators_own_count(place: str, method: Any, train: Any) -> None:
    """`accelerator.accumulate()` inside: it moves a count, and says of every micro-batch that it is the last."""

    class Step(Ours):
        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            if place != "step":
                return super().training_step(model, *args, **kwargs)
            with self.accelerator.accumulate(model):
                return super().training_step(model, *args, **kwargs)

        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            if place != "loss":
                return super().compute_loss(model, *args, **kwargs)
            with self.accelerator.accumulate(model):
                return super().compute_loss(model, *args, **kwargs)

    options = {**OPTIONS, **method, "gradient_accumulation_steps": 3}
    run = train(Net().double(), ITEMS, trainer_class=Step, **options)
    plain = train(Net().double(), ITEMS, **options)
    assert all(torch.equal(a, b) for a, b in zip(run.weights, plain.weights, strict=True))
    assert run.trainer.accelerator.step == 9
