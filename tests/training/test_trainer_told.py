"""What the user is told of a training: what runs, what happened, and which arguments do nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers
from models import Net, classification, collate
from transformers import TrainerCallback
from transformers.utils import logging

ITEMS = classification(64, torch.float32)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("SAM:", "WSAM:", "XSAM:"))]


@pytest.mark.parametrize(
    ("arguments", "start", "end"),
    [
        (
            {"optim": "wsam", "base_optim": "adamw_torch"},
            "WSAM: rho 0.05, gamma 0.6 coupled, on adamw_torch; 2 passes a step",
            "8 forward and backward passes, where adamw_torch alone makes 4",
        ),
        (
            {"optim": "wsam", "base_optim": "sgd", "sam_steps": 2, "gradient_accumulation_steps": 2},
            "WSAM: rho 0.05, steps 2, gamma 0.6 coupled, on sgd; 3 passes a step",
            "24 forward and backward passes, where sgd alone makes 8",
        ),
        (
            {"optim": "sam", "sam_adaptive": True, "sam_rho": 0.5, "sam_scope": "micro_batch", "base_optim": "sgd"},
            "SAM: rho 0.5, adaptive, scope micro_batch, on sgd; 2 passes a step",
            "8 forward and backward passes, where sgd alone makes 4",
        ),
        (
            {"optim": "xsam", "xsam_refresh": 2, "xsam_alpha_points": 5, "base_optim": "sgd"},
            "XSAM: rho 0.05, alpha_points 5, alpha searched every 2 steps, on sgd; 2 passes a step",
            "8 forward and backward passes and 10 forward passes, where sgd alone makes 4",
        ),
    ],
)
def test_start_and_end(
    arguments: dict[str, Any], start: str, end: str, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(Net(), ITEMS, max_steps=4, **arguments)
    first, last = told(capsys)
    assert first == start
    mean = sum(run.series("sharpness")) / 4
    assert (
        last
        == f"{first[: first.index(':')]}: 4 of 4 optimizer steps were sharpness-aware; mean sharpness {mean:.4g}; {end}"
    )


def test_no_sharpness_aware_step(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(Net(), ITEMS, max_steps=4, optim="wsam", wsam_gamma=0.0, base_optim="sgd")
    first, last = told(capsys)
    assert first == "WSAM: rho 0.05, gamma 0.0 coupled, on sgd; 1 pass a step: the base optimizer's own"
    assert last.startswith("WSAM: 0 of 4 optimizer steps were sharpness-aware; 4 forward and backward passes, where")


def test_an_optimizer_of_the_users(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 0.01})}
    train(Net(), ITEMS, max_steps=1, optim="sam", trainer_options=given)
    assert told(capsys)[0] == "SAM: rho 0.05, on RMSprop; 2 passes a step"


def test_steps_that_a_scaler_skipped(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Skipping(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["optimizer"]._is_overflow = state.global_step == 1  # what Accelerate notes when its scaler skips

    train(Net(), ITEMS, max_steps=4, optim="sam", callbacks=[Skipping()])
    assert "4 of 4 optimizer steps were sharpness-aware" in told(capsys)[1]


@pytest.fixture
def verbosity() -> Iterator[None]:
    """transformers', as it was before: a Trainer with a log level sets it for the process."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.mark.usefixtures("verbosity")
def test_nothing_with_a_stock_optimizer_or_when_quiet(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(Net(), ITEMS, max_steps=2, optim="adamw_torch")
    train(Net(), ITEMS, max_steps=2, optim="sam", log_level="error")
    assert told(capsys) == []


class Setting(TrainerCallback):
    """Sets arguments at the end of a step, by its number."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, by_step in self.values.items():
            if state.global_step in by_step:
                setattr(args, name, by_step[state.global_step])


def test_a_schedule_for_an_argument(train: Any) -> None:
    """What a callback sets holds from the next step on; text is read as a number, as elsewhere."""
    schedule = Setting(sam_rho={1: 0.1, 3: "0.2"})
    run = train(Net(), ITEMS, max_steps=4, optim="sam", base_optim="sgd", callbacks=[schedule])
    torch.testing.assert_close(run.series("perturbation_norm"), [0.05, 0.1, 0.1, 0.2], rtol=1e-4, atol=0)


def test_a_schedule_is_the_run_with_that_value(train: Any) -> None:
    """From step 0 on set by a callback: bit for bit the run that was given it."""
    given = {"max_steps": 3, "optim": "wsam", "base_optim": "sgd", "wsam_mode": "coupled"}
    plain = train(Net(), ITEMS, wsam_gamma=0.3, **given)

    class First(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.wsam_gamma = 0.3

    class Before(First):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.on_step_begin(args, state, control)

    set_later = train(Net(), ITEMS, wsam_gamma=0.8, callbacks=[First()], **given)
    set_first = train(Net(), ITEMS, wsam_gamma=0.8, callbacks=[Before()], **given)
    assert set_later.weights[-1].equal(plain.weights[-1])
    assert set_first.weights[-1].equal(plain.weights[-1])


def test_steps_without_the_method_are_not_counted(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """From gamma 0 on a step is the base optimizer's."""
    given = {"max_steps": 4, "optim": "wsam", "base_optim": "sgd", "wsam_mode": "coupled"}
    train(Net(), ITEMS, callbacks=[Setting(wsam_gamma={2: 0.0})], **given)
    assert told(capsys)[1].startswith("WSAM: 2 of 4 optimizer steps were sharpness-aware")


def test_a_search_goes_on_after_a_change(train: Any) -> None:
    """XSAM's found alpha is no argument, and stays."""
    run = train(Net(), ITEMS, max_steps=3, optim="xsam", base_optim="sgd", callbacks=[Setting(sam_rho={1: 0.1})])
    assert len(set(run.series("xsam_alpha"))) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("wsam_mode", "decoupled"), ("sam_scope", "micro_batch"), ("optim", "sam"), ("xsam_alpha", 1.0)]
)
def test_a_change_without_effect(name: str, value: Any, train: Any) -> None:
    given = {"max_steps": 3, "optim": "wsam", "base_optim": "sgd", "wsam_mode": "coupled"}
    plain = train(Net(), ITEMS, **given)
    with pytest.warns(UserWarning, match=f"{name} changed while the training runs") as caught:
        run = train(Net(), ITEMS, callbacks=[Setting(**{name: {1: value}})], **given)
    assert len(caught) == 1
    assert run.weights[-1].equal(plain.weights[-1])


def test_a_change_to_what_is_not_valid(train: Any) -> None:
    with pytest.raises(ValueError, match=r"sam_rho=-1\.0 is not valid"):
        train(Net(), ITEMS, max_steps=3, optim="sam", callbacks=[Setting(sam_rho={1: -1.0})])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optim": "adamw_torch", "sam_rho": 0.1}, r"sam_rho=0.1 has no effect with optim='adamw_torch'"),
        ({"optim": "sam", "wsam_gamma": 0.5}, r"wsam_gamma=0.5 has no effect .* choose optim='wsam'"),
        ({"optim": "sgd", "base_optim": "adafactor"}, r"base_optim='adafactor' has no effect"),
        ({"optim": "sgd", "sam_scope": "device"}, r"sam_scope='device' has no effect"),
    ],
)
def test_arguments_without_effect(arguments: dict[str, Any], message: str, train: Any) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        train(Net(), ITEMS, max_steps=1, **arguments)
    assert len([w for w in caught if "has no effect" in str(w.message)]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"optim": "adamw_torch", "sam_rho": 0.05},
        {"optim": "xsam", "sam_rho": 0.1, "xsam_alpha": 1.0},
        {"optim": "wsam", "sam_steps": 2, "wsam_gamma": 0.5, "base_optim": "sgd"},
    ],
)
def test_arguments_with_effect_or_at_their_default(arguments: dict[str, Any], train: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*has no effect.*")
        train(Net(), ITEMS, max_steps=1, **arguments)


@pytest.mark.parametrize("given", [False, True])
def test_a_stock_trainer_with_our_arguments(given: bool, tmp_path: Any) -> None:
    """It makes its optimizer itself, or is given one: refused before the first step, with the remedy."""
    import hf_sharpness

    args = hf_sharpness.TrainingArguments(str(tmp_path), optim="wsam", use_cpu=True, report_to="none", max_steps=1)
    model = Net()
    optimizers = (torch.optim.SGD(model.parameters(), 0.1), None) if given else (None, None)
    options = {"train_dataset": ITEMS, "eval_dataset": ITEMS, "data_collator": collate, "optimizers": optimizers}
    stock = transformers.Trainer(model, args, **options)
    assert "eval_loss" in stock.evaluate()
    words = r"optim='wsam' needs this package's Trainer.*`hf-sharpness run`"
    if not given and find_spec("transformers.trainer_optimizer") is None:
        words = "unsupported optimizer: wsam"  # older transformers has no place for another word
    with pytest.raises(ValueError, match=words):
        stock.train()
    ours = hf_sharpness.Trainer(model, args, **options)
    ours.train()
    assert ours.state.global_step == 1
