"""What reads all weights is measured in the steps that the Trainer logs, and in no other."""

from __future__ import annotations

from typing import Any

import pytest
from models import Net, Record, classification

from hf_sharpness.engine.climbs import Climbs

ITEMS = classification(40)  # five steps an epoch

CASES = {
    "steps": ({"logging_steps": 2, "max_steps": 7}, [2, 4, 6, 7]),
    "first": ({"logging_steps": 3, "logging_first_step": True, "max_steps": 7}, [1, 3, 6, 7]),
    "epoch": ({"logging_strategy": "epoch", "num_train_epochs": 3}, [1, 5, 10, 15]),
    "none": ({"logging_strategy": "no", "max_steps": 3}, [3]),
}
"""Arguments, and the steps in which distances are measured: the last one always, the first where epochs are logged."""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The numbers of the steps in which the distance was measured."""
    steps = Record()
    original = Climbs._measure_displacement

    def measure(self: Climbs) -> None:
        before = "perturbation_norm" in self.metrics
        original(self)
        if "perturbation_norm" in self.metrics and not before:
            steps.items.append(self.number + 1)

    monkeypatch.setattr(Climbs, "_measure_displacement", measure)
    return steps


@pytest.mark.parametrize("case", CASES)
def test_distances_are_measured_in_logged_steps(case: str, train: Any, measured: Any) -> None:
    arguments, expected = CASES[case]
    run = train(Net().double(), ITEMS, optim="wsam", wsam_mode="decoupled", **arguments)
    assert measured.items == expected
    logs = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert all("perturbation_norm" in entry and "wsam_step_ratio" in entry for entry in logs)
