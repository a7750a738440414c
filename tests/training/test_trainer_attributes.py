"""A Trainer subclass has attributes of its own, and writes to those of transformers' Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification

import hf_sharpness

ITEMS = classification(32, torch.float32)
OPTIONS = {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.1, "max_grad_norm": 0.0}


@pytest.mark.parametrize("optim", ["sgd", "sam"])
def test_attributes_of_the_users_have_their_names(optim: str, train: Any) -> None:
    """What a subclass is likely to call its own: nothing here has such a name."""

    class Own(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._steps, self._engine, self._averages, self._resumed_from = 0, "mine", {}, None

        def _on_epoch_begin(self, number: int) -> None:
            raise AssertionError("nobody calls it")

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self._steps += 1
            return super().compute_loss(*args, **kwargs)

    run = train(Net(), ITEMS, trainer_class=Own, optim=optim, **OPTIONS)
    assert (run.trainer._steps, run.trainer._engine) == (2 * run.trainer.state.global_step, "mine")


def test_a_record_in_the_trainers_log_is_made_once(train: Any) -> None:
    class Own(hf_sharpness.Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.state.log_history.append({"own": len(self.state.log_history)})
            return super().compute_loss(*args, **kwargs)

    run = train(Net(), ITEMS, trainer_class=Own, optim="sam", **OPTIONS)
    history = run.trainer.state.log_history
    assert [entry["own"] for entry in history if "own" in entry] == [i for i, e in enumerate(history) if "own" in e]
    assert sum("own" in entry for entry in history) == 2 * run.trainer.state.global_step
