"""What is seen and kept of a training that is sharpness-aware in some steps only, and what is refused before it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from models import BUFFERED, Net, classification, steps_of
from reference import BASES, InSteps, Sam, Spec, Wsam, by_name, flat, reference_run
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_sharpness import SAM, WSAM, SharpnessArguments, SharpnessAware, TrainingArguments
from hf_sharpness.methods import Method, Step, hyperparameter, is_number, register
from hf_sharpness.methods.registry import unregister

ITEMS = classification(80, torch.float32)  # ten batches of eight
METHODS = by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam")
DECAY = {
    "lr_scheduler_type": "warmup_stable_decay",
    "warmup_steps": 2,
    "lr_scheduler_kwargs": {"num_stable_steps": 5, "num_decay_steps": 3},
}


def noisy() -> Net:
    return Net(lambda: nn.Sequential(nn.Dropout(0.3), BUFFERED["batch_norm_1d"]()))


# Resume.


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_resume_is_bit_for_bit(spec: Spec, train: Any, checkpoint: Any) -> None:
    """From before the first sharpness-aware step, from between them, and in the second epoch."""
    options = {"sam_start": 0.3, "sam_interval": 2, "sam_rho_schedule": "linear", "num_train_epochs": 2}
    arguments = spec.arguments() | BASES[2].arguments() | options | {"shuffle": True}
    whole = train(noisy(), ITEMS, save_strategy="steps", save_steps=1, **arguments)
    for step in (4, 7, 13):
        torch.manual_seed(step)
        rest = train(noisy(), ITEMS, resume=checkpoint(step), **arguments)
        for number, (ours, expected) in enumerate(zip(rest.weights, whole.weights[step:], strict=True)):
            assert torch.equal(ours, expected), (step, number)
        assert rest.series("sharpness") == whole.series("sharpness")
        assert rest.trainer.state.total_flos == whole.trainer.state.total_flos
        assert counted(rest) == counted(whole) == 7


def counted(run: Any) -> int:
    callbacks = run.trainer.callback_handler.callbacks
    return next(c.sharp_steps for c in callbacks if type(c).__name__ == "SharpnessCallback")


def test_a_loops_state_goes_on(plain: Any) -> None:
    """A loop's step numbers, and the epoch whose first step was the base optimizer's, go on from a saved state."""
    spec, steps = by_name("xsam")[0], steps_of(classification(80), 8, epochs=2)

    def made(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = BASES[1].torch(model.parameters())
        given = spec.settings | {"start": 0.2, "interval": 3, "total_steps": 20}
        return optimizer, Spec("", "xsam", given).ours(model, optimizer)

    model = Net().double()
    optimizer, method = made(model)
    whole = plain(model, steps, optimizer, method, epoch_starts=(0, 10))
    model = Net().double()
    optimizer, method = made(model)
    plain(model, steps[:8], optimizer, method)
    state = method.state_dict()
    other, again = made(model)
    other.load_state_dict(optimizer.state_dict())
    again.load_state_dict(state)
    again.start_epoch()  # the loop resumes within the first epoch
    again.method.epoch_begins = False
    rest = plain(model, steps[8:], other, again, epoch_starts=(2,))
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[8:], strict=True))


# The end line, the card, the warning.


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("SAM:", "WSAM:", "XSAM:"))]


class Stop(TrainerCallback):
    """As early stopping and time limits do."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 4


def test_a_training_that_ends_before_sharpness_begins_says_so(train: Any, capsys: Any) -> None:
    train(Net(), ITEMS, optim="sam", sam_start=0.5, num_train_epochs=1, callbacks=[Stop()])
    start, end = told(capsys)
    assert start.endswith("2 passes a step, in 5 of 10 optimizer steps (from step 6 on); 1 pass in the others")
    assert "0 of 4 optimizer steps were sharpness-aware (from step 6 on would have been); 4 forward" in end


def test_the_end_line_counts(train: Any, capsys: Any) -> None:
    train(Net(), ITEMS, optim="wsam", sam_start=0.3, sam_stop=0.8, sam_interval=2, num_train_epochs=1)
    start, end = told(capsys)
    assert "in 2 of 10 optimizer steps (from step 4 to step 8 one in 2); 1 pass in the others" in start
    assert "2 of 10 optimizer steps were sharpness-aware; mean" in end
    assert "12 forward and backward passes, where" in end


def test_no_step_at_all_is_a_warning(train: Any) -> None:
    with pytest.warns(UserWarning, match="none of the 2 optimizer steps will be sharpness-aware with sam_start=0.9"):
        train(Net(), ITEMS, optim="sam", sam_start=0.9, max_steps=2)


def test_searches_are_counted_where_they_are_made(train: Any) -> None:
    """For the warning that alpha lies at an end of its grid: not once more in steps that are not XSAM's."""
    given = {"optim": "xsam", "xsam_refresh": 1, "xsam_alpha_max": 0.1, "sam_interval": 4, "sam_rho": 0.5}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(Net(), ITEMS, **given, max_steps=28)
    assert not caught
    with pytest.warns(UserWarning, match="alpha was found at the upper end of its grid in 8 searches in a row"):
        train(Net(), ITEMS, **given, max_steps=29)


def test_logs_without_a_sharpness_aware_step_have_no_sharpness(train: Any) -> None:
    run = train(Net(), ITEMS, optim="xsam", sam_interval=4, logging_steps=2, num_train_epochs=1)
    logged = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert [("sharpness" in entry) for entry in logged] == [True, False, True, False, True]


# Decay.


def test_sharpness_in_the_decay_of_the_trainers_schedule(train: Any, checkpoint: Any) -> None:
    """Steps 8, 9 and 10 of 10; and once more from a checkpoint."""
    arguments = {"optim": "sam", "base_optim": "sgd", "sam_start": "decay", "num_train_epochs": 1, **DECAY}
    run = train(Net(), ITEMS, save_strategy="steps", save_steps=1, **arguments)
    logged = [entry["step"] for entry in run.trainer.state.log_history if "sharpness" in entry]
    assert logged == [8, 9, 10]
    rest = train(Net(), ITEMS, resume=checkpoint(8), **arguments)
    assert torch.equal(rest.weights[-1], run.weights[-1])


def test_a_scheduler_of_ones_own_is_looked_ahead_in_once(train: Any, checkpoint: Any, libraries: Any) -> None:
    """Torch's SequentialLR cannot be asked for its past, so that the checkpoint says the step."""

    class Own(libraries[0].Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            optimizer = optimizer or self.optimizer
            stay = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 6)
            fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 4)
            self.lr_scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [stay, fall], [6])
            return self.lr_scheduler

    arguments = {"optim": "sam", "sam_start": "decay", "num_train_epochs": 1, "trainer_class": Own}
    run = train(Net(), ITEMS, save_strategy="steps", save_steps=1, **arguments)
    rest = train(Net(), ITEMS, resume=checkpoint(8), **arguments)
    assert [entry["step"] for entry in rest.trainer.state.log_history if "sharpness" in entry] == [7, 8, 9, 10]
    assert torch.equal(rest.weights[-1], run.weights[-1])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [("constant", "does not fall at its end"), ("linear", "falls from its first step on")],
)
def test_a_schedule_without_decay_is_refused_before_the_first_step(schedule: str, message: str, train: Any) -> None:
    run = train(Net(), ITEMS, optim="sam", sam_start="decay", lr_scheduler_type=schedule, max_steps=4, catch=ValueError)
    assert message in str(run.error)
    assert not run.weights


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sam_start": 1.0}, "sam_start=1.0 is not valid: must be a number with 0 <= start < 1, or 'decay'"),
        ({"sam_start": "later"}, "sam_start='later' is not valid"),
        ({"sam_stop": 0.0}, "sam_stop=0.0 is not valid"),
        ({"sam_interval": 0}, "sam_interval=0 is not valid"),
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
    assert SAM(model, optimizer, interval=3, rho_schedule="lr").engine.phase.planned is None


def test_texts_of_the_command_line_and_shared_files(tmp_path: Path) -> None:
    arguments = TrainingArguments("out", optim="sam", sam_start="0.5", sam_interval="3")
    assert (arguments.step_options().start, arguments.step_options().interval) == (0.5, 3)
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
    method = WSAM(model, optimizer, rho=0.2, mode="decoupled", gamma=0.9, interval=2)

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
