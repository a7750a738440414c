"""Made-up studies: a plan without a recipe behind it, and records of runs that nobody trained."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from hf_sharpness.compare.arms import Arm, with_base_arms
from hf_sharpness.compare.packing import pack
from hf_sharpness.compare.plan import Length, Plan, Run, final_seeds, tuning_seeds
from hf_sharpness.compare.points import sobol_points
from hf_sharpness.methods import Method, hyperparameter, is_number, register
from hf_sharpness.methods.registry import unregister

LABELS = np.arange(40) % 4


def a_plan(names: str = "sam", trials: int = 2, tuning: int = 2, seeds: int = 8, **changes: Any) -> Plan:
    asked = [
        Arm(name, "sharpness", {"optim": name, "base_optim": "adamw_torch"}, {"sam_rho": (0.01, 0.05)}, cost=2.0)
        for name in names.split(",")
    ]
    arms = with_base_arms(asked, "adamw_torch", averaging=True)
    content: dict[str, Any] = {
        "name": "made-up",
        "mode": "recipe",
        "question": {"made": "up"},
        "metric": "accuracy",
        "greater_is_better": True,
        "margin": None,
        "base_optim": "adamw_torch",
        "learning_rate": 1e-3,
        "length": Length("max_steps", 100.0),
        "arms": tuple(arms),
        "points": tuple(sobol_points(trials, arms)),
        "tuning_seeds": tuning_seeds(tuning),
        "final_seeds": final_seeds(seeds),
        "facts": {"judged on": "the test split", "splits": "1, 2, 3"},
        "seconds": {arm.name: 0.01 for arm in arms if arm.runs},
        "steps": 100.0,
        "overhead": 0.1,
    }
    return Plan(**{**content, **changes})


def a_look(right: int, **more: Any) -> dict[str, Any]:
    """Scores of a model that has the first `right` of 40 examples right."""
    predictions = np.where(np.arange(40) < right, LABELS, (LABELS + 1) % 4)
    accuracy = {"accuracy": right / 40, "loss": 1.0}
    return {
        "eval": accuracy,
        "test": accuracy,
        "predictions": pack(predictions),
        "labels": pack(LABELS),
        "measures": {"nll": 1.0},
        **more,
    }


def a_record(run: Run, right: int, averaged_right: int | None = None) -> dict[str, Any]:
    averaged = right if averaged_right is None else averaged_right
    look = a_look(right)
    if run.stage == "tuning":
        look = {"eval": look["eval"]}
    return {
        "steps": 60,
        "epochs": 3.0,
        "passes": 2.0 if run.arm == "sam" else 1.0,
        "seconds": 1.0,
        "seconds_per_step": 0.01,
        "peak_memory": 100.0,
        "diverged": False,
        "curve": [[30, 1.5], [60, 1.0]],
        "eval_curve": [],
        "averaged": {name: a_look(averaged) for name in ("swa", "ema")} if run.arm.startswith("base") else {},
        "environment": "here",
        "date": "2026-01-01",
        **look,
    }


@contextlib.contextmanager
def a_method_from_outside() -> Iterator[type[Method]]:
    """`far`, whose length is an argument of its own, `far_rho`."""

    @register
    @dataclasses.dataclass
    class Far(Method):
        name: ClassVar[str] = "far"
        rho: float = hyperparameter(2.0, help="How far.", require="any number", valid=is_number)

    try:
        yield Far
    finally:
        unregister("far")
