"""Each sign of hyper-parameters that do not fit is shown once in a run built for it, and is silent otherwise."""

from __future__ import annotations

import dataclasses
import types
import warnings
from typing import Any, ClassVar

import pytest
import torch
from models import Net, classification

from hf_sharpness.methods import Method, Step, hyperparameter, register
from hf_sharpness.methods.hyperparameters import is_number
from hf_sharpness.methods.registry import unregister
from hf_sharpness.methods.signs import Seen, Sign
from hf_sharpness.tasks.bundled import bundled_recipes

ITEMS = classification(64, torch.float32)
STEPS = {"max_steps": 16, "base_optim": "sgd", "learning_rate": 0.01}


class NetForSequenceClassification(Net):
    """Tells its classes as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(num_labels=3, problem_type=None, use_cache=False, to_dict=dict)


def wrong_labels(model: Net) -> list[dict[str, torch.Tensor]]:
    """The label that the model finds least likely, of every item."""
    with torch.no_grad():
        return [{**item, "labels": model(item["x"][None])["logits"].argmin()} for item in ITEMS]


class NotANumber(Net):
    """Its loss is NaN from the third step on."""

    calls = 0

    def forward(self, x: Any, labels: Any = None) -> Any:
        self.calls += self.training
        outputs = super().forward(x, labels)
        return {**outputs, "loss": outputs["loss"] * (float("nan") if self.calls > 4 else 1.0)}


def shown(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in caught if "training/signs.py" in w.filename or "training/watch.py" in w.filename]


def run(train: Any, model: Net, items: Any = ITEMS, **arguments: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, items, **STEPS | arguments)
    return shown(caught)


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("rho", [20.0, 100.0])
def test_rho_too_large(rho: float, train: Any) -> None:
    message = only(run(train, Net(), optim="sam", sam_rho=rho))
    assert message.startswith(f"sam_rho={rho} is too large: for 10 logs the sharpness has been above the loss")
    assert "Make it smaller" in message


def test_decoupled_wsam_that_does_nothing(train: Any) -> None:
    message = only(run(train, Net(), optim="wsam", wsam_mode="decoupled", wsam_gamma=0.05))
    assert message.startswith("wsam_mode='decoupled' does next to nothing here: wsam_step_ratio")
    assert message.endswith("Use wsam_mode='coupled'")
    assert not run(train, Net(), optim="wsam", wsam_mode="decoupled", wsam_gamma=0.9)


def test_gamma_too_close_to_1(train: Any) -> None:
    given = {"optim": "wsam", "wsam_mode": "coupled", "sam_rho": 1.0, "learning_rate": 0.3, "max_grad_norm": 0.0}
    given["per_device_train_batch_size"] = 64
    message = only(run(train, Net(), wsam_gamma=0.97, **given))
    assert message.startswith("wsam_gamma=0.97 is too close to 1 for the coupled mode: the gradient at the weights")
    assert message.endswith("Use wsam_gamma=0.6 or less")
    assert not run(train, Net(), wsam_gamma=0.6, **given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"optim": "sam", "sam_rho": 0.001}, "sam_rho=0.001 too small to regularise"),
        ({"optim": "wsam", "wsam_gamma": 0.2}, "wsam_gamma=0.2 too small to regularise"),
        ({"optim": "sam", "sam_adaptive": True, "sam_rho": 0.05}, "sam_rho=0.05 too small to regularise"),
        ({"optim": "sam"}, None),
        ({"optim": "wsam"}, None),
        ({"optim": "sam", "sam_adaptive": True, "sam_rho": 0.5}, None),
    ],
)
def test_too_small_to_regularise(given: dict[str, Any], named: str | None, train: Any) -> None:
    """The evaluation has the labels of another world, so that its loss rises while the other falls."""
    opposite = [{**item, "labels": (item["labels"] + 1) % 3} for item in ITEMS]
    options = {"trainer_options": {"eval_dataset": opposite}, "eval_strategy": "steps", "eval_steps": 8}
    found = run(train, Net(), learning_rate=0.05, max_steps=48, **options, **given)
    if named is None:
        assert not found
    else:
        message = only(found)
        assert message.startswith(named)
        assert "the evaluation loss has risen 3 times in a row" in message


@pytest.mark.parametrize("upper", [True, False])
def test_alpha_at_the_end_of_its_grid(upper: bool, train: Any) -> None:
    """A grid too short at the top; and a distance at which the loss of the ascent's own direction is highest."""
    given = {"xsam_alpha_max": 0.5} if upper else {"xsam_rho_max": 0.0}  # at distance 0 all are alike: the first, 0
    given["sam_rho"] = 0.5
    message = only(run(train, Net(), optim="xsam", xsam_refresh=2, **given))
    assert ("upper end of its grid" in message) == upper
    assert ("xsam_alpha_max=0.5. Raise it" if upper else "Lower xsam_rho_max") in message


def test_a_loss_that_is_not_finite(train: Any) -> None:
    message = only(run(train, NotANumber(), optim="sam", logging_nan_inf_filter=True))
    assert message.startswith("the loss was not finite in 1 steps so far")
    assert "halve sam_rho=0.05 or learning_rate=0.01" in message


def test_no_better_than_guessing(train: Any) -> None:
    given = {"optim": "sam", "learning_rate": 0.0, "num_train_epochs": 2, "max_steps": 56}
    model = NetForSequenceClassification()
    message = only(run(train, model, wrong_labels(model), **given))
    assert "is still that of guessing among 3 classes (1.1) or more. Make sam_rho=0.05 smaller" in message
    assert "learning_rate=0.0 is too large, or too small" in message
    model = Net()
    assert not run(train, model, wrong_labels(model), **given), "it does not say how many classes it has"


def test_a_method_of_ones_own(train: Any) -> None:
    """Where it says of none of its hyper-parameters that it is a length, the method is named; else that one."""

    @register
    @dataclasses.dataclass
    class Far(Method):
        name: ClassVar[str] = "far"
        distance: float = hyperparameter(50.0, help="How far.", require="any number", valid=is_number)

        @property
        def replays(self) -> int:
            return 1

        def run(self, step: Step) -> None:
            step.climb(self.distance)
            step.replay()

    try:
        message = only(run(train, Net(), optim="far"))
        assert message.startswith("the step of optim='far' is too large: for 10 logs")
        assert any("halve the step of optim='far'" in m for m in run(train, NotANumber(), optim="far"))
        Far.radii = ("distance",)
        assert any("halve far_distance=50.0 or" in m for m in run(train, NotANumber(), optim="far"))
    finally:
        unregister("far")


def too_near(seen: Seen) -> str | None:
    return f"{seen.named('distance')} is too short ({seen.argument('distance')})" if len(seen.losses) == 3 else None


def test_a_sign_of_a_methods_own(train: Any) -> None:
    """It is told with the signs of every method; and what is usual of its radii is what it says of them."""

    @register
    @dataclasses.dataclass
    class Near(Method):
        name: ClassVar[str] = "near"
        radii: ClassVar[tuple[str, ...]] = ("distance", "other")
        signs: ClassVar[tuple[Sign, ...]] = (too_near,)
        distance: float = hyperparameter(0.5, help="How far.", require="any number", valid=is_number)
        other: float | None = hyperparameter(None, help="Another.", require="any", valid=lambda v: True)

        @property
        def replays(self) -> int:
            return 1

        def run(self, step: Step) -> None:
            step.climb(self.distance)
            step.replay()

    try:
        assert only(run(train, Net(), optim="near")) == "near_distance=0.5 is too short (near_distance)"
        assert Near(distance=3.0, other=1.0).usual == {"distance": 0.5}
    finally:
        unregister("near")


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
@pytest.mark.parametrize("base", ["sgd", "adamw_torch"])
def test_silent_where_all_is_well(optim: str, base: str, train: Any) -> None:
    model = NetForSequenceClassification()
    options = {"trainer_options": {"eval_dataset": ITEMS}, "eval_strategy": "epoch"}
    # The net is so smooth that XSAM's loss is highest at the end of any grid: an alpha is given.
    given = {"max_steps": 64, "base_optim": base, "optim": optim, "xsam_alpha": 1.0 if optim == "xsam" else None}
    given["learning_rate"] = 0.5 if base == "sgd" else 0.02
    assert not run(train, model, ITEMS, **given, **options)


@pytest.mark.slow
@pytest.mark.parametrize("optim", [None, "sam", "wsam", "xsam"])
@pytest.mark.parametrize("name", [name for name in bundled_recipes() if not name.endswith("-hub")])
def test_silent_in_the_recipes(name: str, optim: str | None, tmp_path: Any, capsys: Any) -> None:
    """The smallest as it is; the others on a part of their data, with logs so many that every sign looks."""
    from hf_sharpness.cli import main

    samples = {"train": "1000", "eval": "64", "test": "64"}
    cut = [text for split, count in samples.items() for text in (f"--data.{split}_samples", count)]
    cut = [] if name == "digits-vit" else [*cut, "--logging_steps", "2"]
    cut += ["--model.config.num_hidden_layers", "2"] if "minilm" in name or "finetuned" in name else []
    chosen = ["--optim", optim] if optim else []
    chosen += ["--sam_fraction", "1"] if optim == "xsam" else []  # a part of the batch is not defined for it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = main(["train", name, "--output_dir", str(tmp_path / "run"), *cut, *chosen])
    if status and "install" in (said := capsys.readouterr().err):  # the data, or their package, is not there
        pytest.skip(said.strip().splitlines()[-1])
    assert status == 0
    assert not shown(caught)
