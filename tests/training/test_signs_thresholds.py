"""The signs at their thresholds: what is logged is given, and one more, or a little more, makes the difference."""

from __future__ import annotations

import types
import warnings
from typing import Any

import pytest
import torch

from hf_sharpness.methods import METHODS
from hf_sharpness.training.signs import Signs


class TinyForSequenceClassification:
    def __init__(self, classes: int) -> None:
        self.config = types.SimpleNamespace(num_labels=classes, problem_type=None)


def signs(optim: str, model: Any = None, epochs: float = 3.0, fp16: bool = False, **settings: Any) -> Signs:
    args = types.SimpleNamespace(num_train_epochs=epochs, fp16=fp16, learning_rate=0.1)
    return Signs(METHODS[optim](**settings).resolved("adaptive"), model, args)


def told(seen: Signs, logs: list[dict[str, float]], epoch: float = 0.1, step: int = 51) -> list[str]:
    """What is said of these logs, each after the last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for entry in logs:
            seen.log(entry if "eval_loss" in entry else {"learning_rate": 0.1, **entry}, epoch, step, True)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize(
    ("loss", "sharpness", "count", "speaks"),
    [
        (0.5, 1.01, 10, True),  # above the loss at first, 1
        (0.5, 0.99, 10, False),
        (3.0, 3.01, 10, True),  # above the loss now
        (3.0, 2.99, 10, False),
        (0.5, -0.11, 10, True),
        (0.5, -0.09, 10, False),
        (0.5, 1.01, 9, False),
    ],
)
def test_rho_too_large(loss: float, sharpness: float, count: int, speaks: bool) -> None:
    first = [{"loss": 1.0, "sharpness": 0.0}]
    found = told(signs("sam", rho=7.0), first + count * [{"loss": loss, "sharpness": sharpness}])
    assert [m[:25] for m in found] == (["sam_rho=7.0 is too large:"] if speaks else [])


def test_one_log_within_the_bounds_begins_anew() -> None:
    bad, good = {"loss": 1.0, "sharpness": 2.0}, {"loss": 1.0, "sharpness": 0.1}
    assert not told(signs("sam"), [*9 * [bad], good, *9 * [bad]])


@pytest.mark.parametrize(("ratio", "count", "speaks"), [(0.0099, 10, True), (0.0101, 10, False), (0.0099, 9, False)])
def test_decoupled_wsam_that_does_nothing(ratio: float, count: int, speaks: bool) -> None:
    seen = signs("wsam", mode="decoupled", gamma=0.9)
    assert len(told(seen, count * [{"loss": 1.0, "wsam_step_ratio": ratio}])) == speaks


@pytest.mark.parametrize(
    ("gamma", "rise", "count", "speaks"),
    [
        (0.751, 1.21, 5, True),  # the coefficient of g is -2 at .75
        (0.749, 1.21, 5, False),
        (0.9, 1.19, 5, False),
        (0.9, 1.21, 4, False),  # the mean of five is not there yet
    ],
)
def test_gamma_too_close_to_1(gamma: float, rise: float, count: int, speaks: bool) -> None:
    seen = signs("wsam", mode="coupled", gamma=gamma)
    assert len(told(seen, [{"loss": loss} for loss in [*5 * [1.0], *count * [rise]]])) == speaks


@pytest.mark.parametrize(
    ("optim", "given", "rises", "speaks"),
    [
        ("sam", {"rho": 0.024}, 3, True),  # less than half of .05
        ("sam", {"rho": 0.026}, 3, False),
        ("sam", {"rho": 0.024}, 2, False),
        ("sam", {"rho": 0.24, "adaptive": True}, 3, True),  # ten times as much
        ("sam", {"rho": 0.26, "adaptive": True}, 3, False),
        ("wsam", {"mode": "coupled", "gamma": 0.29}, 3, True),  # .6
        ("wsam", {"mode": "coupled", "gamma": 0.31}, 3, False),
    ],
)
def test_too_small_to_regularise(optim: str, given: dict[str, Any], rises: int, speaks: bool) -> None:
    rows = [row for i in range(rises + 1) for row in ({"loss": 1 - 0.1 * i}, {"eval_loss": 1 + 0.1 * i})]
    found = told(signs(optim, **given), rows)
    assert len(found) == speaks
    if speaks:
        assert "too small to regularise" in found[0]
    flat = [row if "loss" in row else {"eval_loss": 1.0} for row in rows]
    assert not told(signs(optim, **given), flat), "it does not rise"
    still = [row if "eval_loss" in row else {"loss": 1.0} for row in rows]
    assert not told(signs(optim, **given), still), "nothing is overfitted"


@pytest.mark.parametrize(
    ("alphas", "words"),
    [
        ([2.0] * 8, "upper end"),
        ([1.9] + [2.0] * 7, None),
        ([1.9] + [2.0] * 8, "upper end"),
        ([2.0] * 7, None),
        ([0.0] * 8, "lower end"),
        ([0.1] + [0.0] * 7, None),
    ],
)
def test_alpha_at_an_end_of_its_grid(alphas: list[float], words: str | None) -> None:
    seen = signs("xsam", alpha_max=2.0)
    seen.method.found_lately = alphas  # type: ignore[attr-defined]
    found = told(seen, [{"loss": 1.0}])
    assert [words in message for message in found] == ([True] if words else [])


@pytest.mark.parametrize(("fp16", "bad", "speaks"), [(False, 0, 0), (False, 1, 1), (True, 3, 0), (True, 4, 1)])
@pytest.mark.parametrize("name", ["loss", "perturbed_loss"])
def test_loss_not_finite(name: str, fp16: bool, bad: int, speaks: int) -> None:
    seen = signs("sam", fp16=fp16)
    fine = {"loss": torch.tensor(1.0), "perturbed_loss": torch.tensor(1.0)}
    for step in range(6):
        seen.step(fine | ({name: torch.tensor(float("inf"))} if step < bad else {}))
    assert len(told(seen, [{"loss": 1.0}])) == speaks


@pytest.mark.parametrize(
    ("loss", "epochs", "epoch", "step", "count", "speaks"),
    [
        (1.3864, 3.0, 1.01, 51, 5, True),  # log 4 = 1.38629
        (1.3862, 3.0, 1.01, 51, 5, False),
        (1.3864, 3.0, 0.99, 51, 5, False),
        (1.3864, 3.0, 1.01, 50, 5, False),
        (1.3864, 1.0, 0.51, 51, 5, True),
        (1.3864, 1.0, 0.49, 51, 5, False),
        (1.3864, 3.0, 1.01, 51, 4, False),
    ],
)
def test_no_better_than_guessing(loss: float, epochs: float, epoch: float, step: int, count: int, speaks: bool) -> None:
    seen = signs("sam", TinyForSequenceClassification(4), epochs)
    assert len(told(seen, count * [{"loss": loss}], epoch, step)) == speaks
