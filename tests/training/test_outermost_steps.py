"""What surrounds the inner call of an outermost training_step is done once, and what it skips stays skipped."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from models import Net
from outermost import ITEMS, METHODS, OPTIONS, Ours, every_method, with_dropout


class Busy:
    """Does a lot around the inner call, but nothing to the gradient."""

    opened = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls, self.noises, self.norms = 0, [], []
        self.teacher = copy.deepcopy(self.model)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self.opened = True
        yield
        self.opened = False

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        self.noises.append(random.random())
        inputs["x"] += torch.randn_like(inputs["x"]) * self.noises[-1]
        with self.open():
            loss = super().training_step(model, inputs, *args, **kwargs)
        self.norms.append(sum(p.grad.norm() for p in model.parameters()))
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        assert self.opened
        return super().compute_loss(*args, **kwargs)


@every_method
@pytest.mark.parametrize("accumulation", [1, 3])
def test_what_surrounds_one_inner_call_is_done_once(accumulation: int, method: Any, train: Any) -> None:
    """As in stock: the inner call is repeated within the contexts, from the random state of its own begin."""
    options = {**OPTIONS, "gradient_accumulation_steps": accumulation}
    ours = train(with_dropout(), ITEMS, trainer_class=type("Own", (Busy, Ours), {}), **options, **method).trainer
    assert ours.calls == len(ours.noises) == len(ours.norms) == 3 * accumulation

    stock_class = type("Stock", (Busy, transformers.Trainer), {})
    zero = {**options, **method, "sam_rho": 0.0}
    mine = train(with_dropout(), ITEMS, trainer_class=type("Own", (Busy, Ours), {}), **zero)
    del options["base_optim"]
    theirs = train(with_dropout(), ITEMS, trainer_class=stock_class, stock=True, optim="sgd", **options)
    assert ours.noises == mine.trainer.noises == theirs.trainer.noises
    if method["optim"] != "xsam":  # at rho 0 its direction has no length
        torch.testing.assert_close(torch.stack(mine.weights), torch.stack(theirs.weights), rtol=1e-9, atol=1e-9)
        if "sam_scope" not in method and method["optim"] == "sam":
            assert all(torch.equal(a, b) for a, b in zip(mine.weights, theirs.weights, strict=True))
        for a, b in zip(mine.trainer.teacher.parameters(), theirs.trainer.teacher.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_method
def test_the_contexts_make_no_difference(method: Any, train: Any) -> None:
    """A step that only opens a context is this package's own."""

    class Timed(Ours):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with torch.autograd.graph.save_on_cpu():
                return super().training_step(*args, **kwargs)

    for accumulation in (1, 3):
        options = {**OPTIONS, **method, "gradient_accumulation_steps": accumulation}
        timed = train(with_dropout(), ITEMS, trainer_class=Timed, **options)
        plain = train(with_dropout(), ITEMS, **options)
        assert all(torch.equal(a, b) for a, b in zip(timed.weights, plain.weights, strict=True))
        assert timed.series("sharpness") == plain.series("sharpness")


class Skipping:
    """Leaves out every other micro-batch, in one of three ways."""

    way = "return"

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen % 2:
            return super().training_step(model, inputs, *args, **kwargs)
        if self.way == "return":
            return torch.tensor(0.0)
        if self.way == "error":
            with contextlib.suppress(RuntimeError):
                super().training_step(model, inputs | {"x": inputs["x"][:, :2]}, *args, **kwargs)
            return torch.tensor(0.0)
        super().training_step(model, inputs, *args, **kwargs)
        model.zero_grad()
        return torch.tensor(0.0)


@every_method
@pytest.mark.parametrize("way", ["return", "zero_grad"])
def test_a_skipped_batch_stays_one(way: str, method: Any, train: Any) -> None:
    own = type("Own", (Skipping, Ours), {"way": way})
    run = train(Net().double(), ITEMS, trainer_class=own, **{**OPTIONS, **method, "max_steps": 5})
    kept = [item for start in range(0, 96, 16) for item in ITEMS[start : start + 8]]
    plain = train(Net().double(), kept, **{**OPTIONS, **method})
    assert torch.equal(run.weights[1], run.weights[0])
    assert torch.equal(run.weights[3], run.weights[2])
    if method["optim"] != "xsam":  # which counts epochs
        for mine, theirs in zip(run.weights[::2], plain.weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@every_method
def test_a_skipped_micro_batch_is_left_out_of_its_step(method: Any, train: Any) -> None:
    """The second of two; the first counts half, as it does in stock."""
    own = type("Own", (Skipping, Ours), {})
    run = train(Net().double(), ITEMS, trainer_class=own, **OPTIONS, **method, gradient_accumulation_steps=2)

    class Half(Ours):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) / 2

    kept = [item for start in range(0, 96, 16) for item in ITEMS[start : start + 8]]
    plain = train(Net().double(), kept, trainer_class=Half, **OPTIONS, **method)
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(plain.weights), rtol=1e-9, atol=1e-9)


class LateMask:
    """Changes the gradient from the second step on."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, *args, **kwargs)
        if self.state.global_step:
            model.last.bias.grad.zero_()
        return loss


def test_a_step_that_begins_to_differ_later(train: Any) -> None:
    """XSAM's search of the first epoch, made in the step that is taken back, is made again."""
    for method in METHODS:
        own = type("Own", (LateMask, Ours), {})
        run = train(with_dropout(), ITEMS, trainer_class=own, **OPTIONS, **method)

        class Hooked(Ours):
            def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
                state = self.state
                self.model.last.bias.register_hook(lambda g: g * 0 if state_of(self).global_step else g)
                del state
                return super().create_optimizer(*args, **kwargs)

        alike = train(with_dropout(), ITEMS, trainer_class=Hooked, **OPTIONS, **method)
        torch.testing.assert_close(torch.stack(run.weights), torch.stack(alike.weights), rtol=1e-9, atol=1e-9)


def state_of(trainer: Any) -> Any:
    return trainer.state


class Lazy:
    """Counts in an attribute that the first call makes, as a flag of its own says."""

    ready = False
    average = None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if not self.ready:
            self.count, self.ready = 0, True
        self.count += 1
        loss = super().compute_loss(*args, **kwargs)
        if self.average is None:
            self.average = float(loss)
        self.average = 0.9 * self.average + 0.1 * float(loss)
        return loss * self.count + self.average


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("in_init", [False, True])
def test_a_counter_made_by_the_first_call(in_init: bool, whole: bool, train: Any) -> None:
    class Init(Lazy):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if in_init:
                self.ready, self.average = False, None

    class Whole:
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    bases = (Whole, Init) if whole else (Init,)
    ours = type("Own", (*bases, Ours), {})
    run = train(Net().double(), ITEMS, trainer_class=ours, **OPTIONS, optim="sam", sam_rho=0.0)
    options = {k: v for k, v in OPTIONS.items() if k != "base_optim"}
    stock_class = type("Stock", (*bases, transformers.Trainer), {})
    stock = train(Net().double(), ITEMS, trainer_class=stock_class, stock=True, optim="sgd", **options)
    assert all(torch.equal(a, b) for a, b in zip(run.weights, stock.weights, strict=True))
    assert run.trainer.count == stock.trainer.count == 3
    assert run.trainer.average == stock.trainer.average
