"""What an arm costs that is sharpness-aware in some steps only: the whole training, not its first steps."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from hf_sharpness import TrainingArguments
from hf_sharpness.compare import planning
from hf_sharpness.compare.arms import Arm
from hf_sharpness.compare.cost import Cost, Scale, decay_in, in_every_step, over_the_training, passes_of_a_step
from hf_sharpness.compare.errors import CompareError
from hf_sharpness.compare.plan import Length
from hf_sharpness.compare.subject import Own

SHARP, BASE = Cost(2.0, 0.6), Cost(1.0, 0.2)


def an_arm(**arguments: Any) -> Arm:
    return Arm("sam", "sharpness", {"optim": "sam", **arguments})


@pytest.mark.parametrize(
    ("optim", "arguments", "passes"),
    [
        ("xsam", {}, 2 + 24 / 3 / 25),  # a search for each epoch of 25 steps: the 24 probes of four steps are of one
        ("xsam", {"xsam_refresh": "epoch"}, 2 + 24 / 3 / 25),
        ("xsam", {"xsam_refresh": 2}, 2 + 24 / 3 / 4),
        ("sam", {}, 2 + 24 / 3 / 4),
        ("adamw_torch", {}, 2 + 24 / 3 / 4),
    ],
)
def test_a_search_once_an_epoch_is_spread_over_it(optim: str, arguments: dict[str, Any], passes: float) -> None:
    seen = SimpleNamespace(micro_batches=4, with_gradient=8, forward_only=24, step_seconds=[1.0] * 4)
    arm = Arm("an arm", "sharpness", {"optim": optim, **arguments})
    assert passes_of_a_step(seen, arm, 25.0) == pytest.approx(passes)


@pytest.mark.parametrize(
    ("arguments", "passes", "seconds"),
    [
        ({}, 2.0, 0.6),
        ({"sam_start": 0.5}, 1.5, 0.4),
        ({"sam_start": "0.75"}, 1.25, 0.3),
        ({"sam_stop": 0.1}, 1.1, 0.24),
        ({"sam_start": 0.2, "sam_stop": 0.6}, 1.4, 0.36),
        ({"sam_start": "decay"}, 1.3, 0.32),
        ({"sam_start": "decay", "sam_stop": 0.8}, 1.1, 0.24),
        ({"sam_start": "decay", "sam_stop": 0.6}, 1.0, 0.2),
    ],
)
def test_the_mean_over_the_training(arguments: dict[str, Any], passes: float, seconds: float) -> None:
    cost = over_the_training(SHARP, BASE, an_arm(**arguments), 100, lambda total: 70)
    assert (cost.passes, cost.seconds) == pytest.approx((passes, seconds))


def test_where_tuning_chooses_the_dearest_counts() -> None:
    arm = dataclasses.replace(an_arm(), choices={"sam_start": (0.9, 0.5, 0.75)})
    assert over_the_training(SHARP, BASE, arm, 100, lambda total: 0).passes == pytest.approx(1.5)


def test_steps_are_measured_with_sharpness_in_all_of_them() -> None:
    assert in_every_step(an_arm(sam_rho=0.1)) == {}
    assert in_every_step(an_arm(sam_start="decay", sam_stop=0.9)) == {"sam_start": 0.0, "sam_stop": 1.0}
    arguments = {**an_arm(sam_start=0.5).arguments, **in_every_step(an_arm(sam_start=0.5))}
    assert TrainingArguments("out", **arguments).step_options().start == 0.0


def test_a_plan_counts_the_whole_training() -> None:
    """An arm that is on in the second half costs 1.5 passes, and its base arm trains 1.5 times as long."""
    subject = SimpleNamespace(
        own=lambda: Own(1e-3, Length("num_train_epochs", 4.0), "sgd", {}),
        check=lambda arms: None,
        costs=lambda arms: ({arm.name: BASE if arm.kind == "base" else SHARP for arm in arms}, Scale(25.0, 1.0)),
        decay=lambda total: 70,
        facts=lambda: {"judged on": "the test split"},
        question=dict,
        name="task",
        mode="recipe",
        metric="accuracy",
        greater_is_better=True,
        averaging=False,
    )
    options = planning.Options("sam", {"sam_start": [0.5], "sam_rho": [0.05]}, 2, 1, 8, None, None)
    plan = planning.make_plan(subject, options)
    assert plan.arm("sam").cost == 1.5
    assert plan.seconds["sam"] == pytest.approx(0.4)
    assert max(arm.cap for arm in plan.arms if arm.kind == "base") == 1.5


def test_the_decay_of_a_recipes_arguments() -> None:
    options = {"num_decay_steps": 30}
    wsd = TrainingArguments("out", lr_scheduler_type="warmup_stable_decay", warmup_steps=5, lr_scheduler_kwargs=options)
    assert decay_in(wsd, 100) == 70
    with pytest.raises(CompareError, match=r"sam_start=.decay.*falls from its first step on"):
        decay_in(TrainingArguments("out"), 100)
