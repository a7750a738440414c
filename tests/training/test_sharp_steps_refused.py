"""What a training that is sharpness-aware in some steps only refuses, and steps and methods of others in it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models import Net, classification, steps_of
from reference import BASES, InSteps, Sam, Wsam, by_name, flat, reference_run
from torch import nn
from transformers import EarlyStoppingCallback

from hf_sharpness import SAM, WSAM, SharpnessArguments, SharpnessAware, TrainingArguments
from hf_sharpness.methods import Method, Step, hyperparameter, is_number, register
from hf_sharpness.methods.registry import unregister

ITEMS = classification(80, torch.float32)  # ten batches of eight


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sam_start": 1.0}, "sam_start=1.0 is not valid: must be a number with 0 <= start < 1, or 'decay'"),
        ({"sam_start": "later"}, "sam_start='later' is not valid"),
        ({"sam_stop": 0.0}, "sam_stop=0.0 is not valid"),
        ({"sam_rho_schedule": "cosine"}, "sam_rho_schedule='cosine' is not valid: must be one of constant, lr, linear"),
        ({"sam_start": 0.6, "sam_stop": 0.4}, "sam_start=0.6 and sam_stop=0.4 leave no step"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        SharpnessArguments(optim="sam", **arguments)


@pytest.mark.parametrize("options", [{"start": 0.5}, {"stop": 0.5}, {"rho_schedule": "linear"}])
def test_a_loop_of_unknown_length_is_refused_at_once(options: dict[str, Any]) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name}=.*give total_steps"):
        SAM(model, optimizer, **options)
    assert SAM(model, optimizer, rho_schedule="lr").engine.phase.planned is None


def test_texts_of_the_command_line_and_shared_files(tmp_path: Path) -> None:
    arguments = TrainingArguments("out", optim="sam", sam_start="0.5", sam_stop="0.75")
    assert (arguments.step_options().start, arguments.step_options().stop) == (0.5, 0.75)
    arguments.save_pretrained(tmp_path)
    loaded = SharpnessArguments.from_pretrained(tmp_path)
    assert loaded.step_options() == arguments.step_options()
    decay = SharpnessArguments(optim="sam", sam_start="decay")
    assert decay.step_options().start == "decay"


# Methods of others.


@pytest.fixture
def radius() -> Iterator[type[Method]]:
    @register
    @dataclasses.dataclass
    class Radius(Method):
        """SAM, whose rho is called otherwise."""

        name: ClassVar[str] = "radius"
        radii: ClassVar[tuple[str, ...]] = ("length",)
        length: float = hyperparameter(0.2, help="rho.", require="must be a number", valid=is_number)

        @property
        def replays(self) -> int:
            return 1

        def run(self, step: Step) -> None:
            step.climb(self.length)
            step.replay()

    yield Radius
    unregister("radius")


def test_a_method_from_outside_is_in_some_steps_only(radius: type[Method], plain: Any) -> None:
    model, steps = Net().double(), steps_of(classification(80), 8)
    optimizer = BASES[1].torch(model.parameters())
    options = {"start": 0.4, "rho_schedule": "linear", "total_steps": 10}
    method = SharpnessAware(radius(), model, optimizer, **options)
    weights = plain(model, steps, optimizer, method)
    reference = InSteps(Sam(0.2), range(4, 10))
    records = reference_run(Net(), steps, reference, BASES[1].reference(), [BASES[1].lr] * 10)
    torch.testing.assert_close(torch.stack(weights), torch.stack([r.weights for r in records]), rtol=1e-9, atol=1e-9)
    assert method.method.length == 0.2


def test_a_rho_schedule_needs_a_rho(radius: type[Method]) -> None:
    radius.radii = ("rho",)
    with pytest.raises(ValueError, match="sam_rho_schedule='lr' has nothing to scale: the method 'radius' has no rho"):
        SharpnessArguments(optim="radius", sam_rho_schedule="lr")


# A term that waits.


def test_two_backwards_before_a_step_keep_both(plain: Any) -> None:
    """A decoupled term made by a first `backward`, and a second one that is the base optimizer's own."""
    batch, model = steps_of(classification(8), 8)[0][0], Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = WSAM(model, optimizer, rho=0.2, mode="decoupled", gamma=0.9, stop=0.5, total_steps=2)

    def closure() -> torch.Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss.detach()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is called twice
        method.backward(closure)
        method.backward(closure)
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    records = reference_run(Net(), [[batch]], Wsam(0.2, mode="decoupled", gamma=0.9), lrs=[0.1])
    g, extra = records[0].handed.gradient, records[0].handed.extra
    clip = 0.5 / ((2 * g).norm() + 1e-6)
    expected = flat(Net()).double() - 0.1 * clip * (2 * g + extra)
    torch.testing.assert_close(flat(model), expected, rtol=1e-9, atol=1e-9)


# Steps of one's own, and batches that are skipped.


def test_a_step_of_ones_own_is_repeated_from_the_first_sharp_step_on(train: Any, libraries: Any) -> None:
    """A training_step that changes the gradient: whole, in sharpness-aware steps; itself, in the others."""

    class Halving(libraries[0].Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            for parameter in self.model.parameters():
                parameter.grad.mul_(0.5)
            return loss

    items, base = classification(80), BASES[1]
    arguments = by_name("sam")[0].arguments() | base.arguments() | {"weight_decay": 0.0, "sam_start": 0.4}
    run = train(Net().double(), items, trainer_class=Halving, num_train_epochs=1, max_grad_norm=0.0, **arguments)
    half = {"optim": "sam", "sam_rho": 0.2}
    assert half.items() <= arguments.items()
    method, steps = InSteps(Sam(0.2), range(4, 10)), steps_of(items, 8)
    reference = reference_run(Net(), steps, method, type(base.reference())(0.9, 0.0), [base.lr / 2] * 10)
    torch.testing.assert_close(
        torch.stack(run.weights), torch.stack([r.weights for r in reference]), rtol=1e-9, atol=1e-9
    )


def test_a_batch_that_is_left_out_counts_as_a_step(train: Any, libraries: Any) -> None:
    class Skipping(libraries[0].Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.state.global_step in (1, 3):
                return torch.zeros(())
            return super().training_step(*args, **kwargs)

    run = train(Net(), ITEMS, trainer_class=Skipping, optim="sam", sam_stop=0.5, num_train_epochs=1)
    logged = [entry["step"] for entry in run.trainer.state.log_history if "sharpness" in entry]
    assert logged == [1, 3, 5]


def test_an_epochs_search_waits_for_the_first_batch_that_is_not_left_out(train: Any, libraries: Any) -> None:
    """The first two of the second epoch are: XSAM, which has an alpha from the first, searches in the third."""

    class Skipping(libraries[0].Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.state.global_step in (10, 11):
                return torch.zeros(())
            return super().training_step(*args, **kwargs)

    items, (spec,), base = classification(80), by_name("xsam"), BASES[0]
    arguments = spec.arguments() | base.arguments() | {"max_grad_norm": 0.0, "num_train_epochs": 2}
    run = train(Net().double(), items, trainer_class=Skipping, **arguments)
    steps = steps_of(items, 8, epochs=2)
    records = reference_run(
        Net(), steps[:10] + steps[12:], spec.reference(), base.reference(), [base.lr] * 18, epoch_starts=(0, 10)
    )
    made = torch.stack(run.weights[:10] + run.weights[12:])
    torch.testing.assert_close(made, torch.stack([r.weights for r in records]), rtol=1e-9, atol=1e-9)
    assert len({record.handed.alpha for record in records}) == 2


def test_early_stopping_is_fine_with_it(train: Any) -> None:
    """Evaluations between plain steps change nothing."""
    run = train(
        Net(),
        ITEMS,
        optim="sam",
        sam_start=0.5,
        num_train_epochs=1,
        eval_strategy="steps",
        eval_steps=3,
        metric_for_best_model="eval_loss",
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        callbacks=[EarlyStoppingCallback(5)],
        trainer_options={"eval_dataset": ITEMS[:16]},
    )
    assert [entry["step"] for entry in run.trainer.state.log_history if "sharpness" in entry] == [6, 7, 8, 9, 10]
