"""The wrapper of the outermost training_step: what goes through it, what is done once, what is refused, and its end."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from models import Net, classification
from own_steps import MEMORY, backward
from torch import nn
from transformers import TrainerCallback

import hf_sharpness
from hf_sharpness.training.outermost import unwrapped

ITEMS = classification(96)
OPTIONS = {"max_steps": 3, "learning_rate": 0.1, "max_grad_norm": 0.0, "base_optim": "sgd"}
SAM = {"optim": "sam", "sam_rho": 0.2}
METHODS = [
    SAM,
    SAM | {"sam_scope": "micro_batch"},
    {"optim": "wsam", "wsam_mode": "coupled", "sam_rho": 0.2},
    {"optim": "wsam", "wsam_mode": "decoupled", "sam_rho": 0.2},
    {"optim": "xsam", "sam_rho": 0.2},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())))
Ours = hf_sharpness.Trainer


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


def with_dropout() -> Net:
    return Net(lambda: nn.Dropout(0.3)).double()


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


# What goes through unchanged.


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
    assert run.trainer._steps is None


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


# What is refused.


class Manual:
    """Steps the Trainer's optimizer itself."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, *args, **kwargs)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


class Adversarial:
    """Trains a critic of its own in every step."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "critic"):
            self.critic = nn.Linear(3, 1).double()
            self.critic_optimizer = torch.optim.Adam(self.critic.parameters())
        with torch.no_grad():
            logits = model(inputs["x"])["logits"]
        self.critic_optimizer.zero_grad()
        self.critic(logits).mean().backward()
        self.critic_optimizer.step()
        return super().training_step(model, inputs, *args, **kwargs)


class AdversarialLoss:
    """Steps an optimizer in its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        self.extra.step()
        return super().compute_loss(model, *args, **kwargs)


class Swallowing:
    """Skips a batch whatever happens in it."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().training_step(*args, **kwargs)
        except Exception:
            return torch.tensor(0.0)


@every_method
@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Manual, "Manual.training_step"),
        (Adversarial, "Adversarial.training_step"),
        (AdversarialLoss, "compute_loss"),
        (type("Hidden", (Swallowing, Manual), {}), "Swallowing.training_step"),
    ],
)
def test_a_step_in_which_an_optimizer_steps(case: type, name: str, method: Any, train: Any) -> None:
    own = type("Own", (case, Ours), {})
    run = train(Net().double(), ITEMS, trainer_class=own, catch=ValueError, **OPTIONS, **method)
    assert name in str(run.error)
    assert "optimizer" in str(run.error)
    if case is not Adversarial:
        assert not run.weights
        assert torch.equal(run.model.first.weight, Net().double().first.weight)
    stock_options = {k: v for k, v in OPTIONS.items() if k != "base_optim"}
    train(Net().double(), ITEMS, trainer_class=own, optim="sgd", **stock_options)


@every_method
def test_an_optimizer_made_in_the_step_may_step(method: Any, train: Any) -> None:
    """An attack on the inputs."""

    class Attacking(Ours):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            shift = torch.zeros_like(inputs["x"], requires_grad=True)
            attack = torch.optim.SGD([shift], lr=0.1)
            for _ in range(2):
                shift.grad = torch.ones_like(shift)
                attack.step()
            return super().compute_loss(model, inputs | {"x": inputs["x"] + shift.detach()}, *args, **kwargs)

    class Shifted(Ours):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs | {"x": inputs["x"] - 0.2}, *args, **kwargs)

    run, alike = (train(Net().double(), ITEMS, trainer_class=c, **OPTIONS, **method) for c in (Attacking, Shifted))
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(alike.weights), rtol=1e-9, atol=1e-9)


class Copy:
    """A copy of the model that an optimizer of its own moves, as adversarial weight perturbation has it."""

    def __init__(self, model: Any) -> None:
        self.net = copy.deepcopy(model)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def shift(self, inputs: Any) -> float:
        self.optimizer.zero_grad()
        self.net(**inputs)["loss"].backward()
        self.optimizer.step()
        return float(self.net.first.weight.norm())


@every_method
def test_an_optimizer_of_an_object_may_step(method: Any, train: Any) -> None:
    """At rho 0 the steps are stock ones, and the copy has moved once for each."""
    ours, stock = [], []
    for record, options in ((ours, OPTIONS | method | {"sam_rho": 0.0}), (stock, {"optim": "sgd"})):

        class Adversary(Ours):
            copy: Any = None

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if self.copy is None:
                    self.copy = Copy(model)
                factor = self.copy.shift(inputs)
                return super().compute_loss(model, inputs | {"x": inputs["x"] * factor}, *args, **kwargs)

        common = {k: v for k, v in OPTIONS.items() if k != "base_optim"}
        run = train(Net().double(), ITEMS, trainer_class=Adversary, **(common | options))
        record += [*run.weights, *(p.detach() for p in run.trainer.copy.net.parameters())]
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


class Writer(Net):
    def generate(self, x: torch.Tensor) -> torch.Tensor:
        return x


@every_method
def test_generating_in_a_whole_step(method: Any, train: Any) -> None:
    """Refused before the first optimizer step, by the name of the class; around one inner call it is done once."""

    class Online:
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs = {"x": model.generate(inputs["x"]), "labels": inputs["labels"]}
            return backward(self, model, inputs)

    class Once:
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs["x"] = model.generate(inputs["x"])
            return super().training_step(model, inputs, *args, **kwargs)

    own = type("Own", (Online, Ours), {})
    run = train(Writer().double(), ITEMS, trainer_class=own, catch=ValueError, **OPTIONS, **method)
    assert "Online.training_step generates" in str(run.error)
    assert not run.weights
    assert "generate" not in vars(run.model)
    run = train(Writer().double(), ITEMS, trainer_class=type("Own", (Once, Ours), {}), **OPTIONS, **method)
    plain = train(Net().double(), ITEMS, **OPTIONS, **method)
    assert torch.equal(run.weights[-1], plain.weights[-1])


def test_a_batch_that_can_be_read_once(train: Any) -> None:
    class Own(Ours):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return backward(self, model, {"x": torch.stack(list(inputs["rows"])), "labels": inputs["labels"]})

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            samples, number = super().get_batch_samples(*args, **kwargs)
            return [{"rows": iter(s["x"]), "labels": s["labels"]} for s in samples], number

    run = train(Net().double(), ITEMS, trainer_class=Own, catch=ValueError, **OPTIONS, **SAM)
    assert "list or a tensor" in str(run.error)
    assert not run.weights


def test_the_mixin_after_a_trainer_is_refused() -> None:
    with pytest.raises(TypeError, match="Name the mixin first: class Mine"):
        type("Mine", (transformers.Trainer, hf_sharpness.SharpnessTrainerMixin), {})
    sub = type("Sub", (transformers.Trainer,), {})
    with pytest.raises(TypeError, match="Name the mixin first"):
        type("Mine", (sub, hf_sharpness.SharpnessTrainerMixin), {})
    type("Fine", (hf_sharpness.SharpnessTrainerMixin, sub), {})
    type("Fine", (sub, hf_sharpness.Trainer), {})
    type("Fine", (hf_sharpness.Trainer, hf_sharpness.SharpnessTrainerMixin), {})


# Counters that come into being behind a flag.


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
