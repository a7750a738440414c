"""What is seen and kept of a training that is sharpness-aware in some steps only."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models import BUFFERED, Net, classification, steps_of
from reference import BASES, Spec, by_name
from torch import nn
from transformers import TrainerCallback

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
    """From before the first sharpness-aware step, from between them, in the second epoch, and from after the last."""
    options = {"sam_start": 0.3, "sam_stop": 0.8, "sam_rho_schedule": "linear", "num_train_epochs": 2}
    arguments = spec.arguments() | BASES[2].arguments() | options | {"shuffle": True}
    whole = train(noisy(), ITEMS, save_strategy="steps", save_steps=1, **arguments)
    for step in (4, 7, 13, 17):
        torch.manual_seed(step)
        rest = train(noisy(), ITEMS, resume=checkpoint(step), **arguments)
        for number, (ours, expected) in enumerate(zip(rest.weights, whole.weights[step:], strict=True)):
            assert torch.equal(ours, expected), (step, number)
        assert rest.series("sharpness") == whole.series("sharpness")
        assert rest.trainer.state.total_flos == whole.trainer.state.total_flos
        assert counted(rest) == counted(whole) == 10


def counted(run: Any) -> int:
    callbacks = run.trainer.callback_handler.callbacks
    return next(c.sharp_steps for c in callbacks if type(c).__name__ == "SharpnessCallback")


@pytest.mark.parametrize("steps_made", [2, 8, 18], ids=["before", "between", "after"])
def test_a_loops_state_goes_on(steps_made: int, plain: Any) -> None:
    """A loop's step numbers, and the epoch whose first step was the base optimizer's, go on from a saved state."""
    spec, steps = by_name("xsam")[0], steps_of(classification(80), 8, epochs=2)

    def made(model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = BASES[1].torch(model.parameters())
        given = spec.settings | {"start": 0.2, "stop": 0.85, "total_steps": 20}
        return optimizer, Spec("", "xsam", given).ours(model, optimizer)

    model = Net().double()
    optimizer, method = made(model)
    whole = plain(model, steps, optimizer, method, epoch_starts=(0, 10))
    model = Net().double()
    optimizer, method = made(model)
    plain(model, steps[:steps_made], optimizer, method, epoch_starts=(0, 10))
    state = method.state_dict()
    other, again = made(model)
    other.load_state_dict(optimizer.state_dict())
    again.load_state_dict(state)
    again.start_epoch()  # the loop resumes within an epoch
    again.method.epoch_begins = False
    rest = plain(model, steps[steps_made:], other, again, epoch_starts=(10 - steps_made,))
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[steps_made:], strict=True))


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
    train(Net(), ITEMS, optim="wsam", sam_start=0.3, sam_stop=0.8, num_train_epochs=1)
    start, end = told(capsys)
    assert "in 5 of 10 optimizer steps (from step 4 to step 8); 1 pass in the others" in start
    assert "5 of 10 optimizer steps were sharpness-aware; mean" in end
    assert "15 forward and backward passes, where" in end


def test_no_step_at_all_is_a_warning(train: Any) -> None:
    with pytest.warns(UserWarning, match="none of the 2 optimizer steps will be sharpness-aware with sam_start=0.9"):
        train(Net(), ITEMS, optim="sam", sam_start=0.9, max_steps=2)


def test_searches_are_counted_where_they_are_made(train: Any) -> None:
    """For the warning that alpha lies at an end of its grid: not once more in steps that are not XSAM's."""
    given = {"optim": "xsam", "xsam_refresh": 1, "xsam_alpha_max": 0.1, "sam_start": 0.25, "sam_rho": 0.5}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(Net(), ITEMS, **given, sam_stop=0.5, max_steps=28)
    assert not caught
    with pytest.warns(UserWarning, match="alpha was found at the upper end of its grid in 8 searches in a row"):
        train(Net(), ITEMS, **given, sam_stop=0.53, max_steps=28)


def test_logs_without_a_sharpness_aware_step_have_no_sharpness(train: Any) -> None:
    run = train(Net(), ITEMS, optim="xsam", sam_start=0.3, sam_stop=0.7, logging_steps=2, num_train_epochs=1)
    logged = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert [("sharpness" in entry) for entry in logged] == [False, True, True, True, False]


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
