"""A training_step that catches its own errors, as libraries' do to survive one of memory: a further pass is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import Net
from outermost import ITEMS, OPTIONS
from torch import Tensor

import hf_sharpness

METHODS = [
    {"optim": "sam", "sam_rho": 0.1},
    {"optim": "wsam", "wsam_mode": "coupled", "sam_rho": 0.1},
    {"optim": "wsam", "wsam_mode": "decoupled", "sam_rho": 0.1},
    {"optim": "xsam", "sam_rho": 0.1},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.get("wsam_mode", m["optim"]))


class Swallows(transformers.Trainer):
    """A whole step of its own, in which the further passes of one optimizer step fail."""

    fails: int | None = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        try:
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            if self._sharpness_steps.replaying and self.state.global_step == self.fails:
                raise torch.OutOfMemoryError("out of memory")
            self.accelerator.backward(loss / self.args.gradient_accumulation_steps)
            return loss.detach() / self.args.gradient_accumulation_steps
        except Exception:
            return torch.tensor(0.0)


class Below(hf_sharpness.SharpnessTrainerMixin, Swallows):
    """The mixin is the outermost."""


class Outermost(Below):
    training_step = Swallows.training_step


def run_of(trainer_class: type, fails: int | None, train: Any, **options: Any) -> Any:
    made = type("Own", (trainer_class,), {"fails": fails})
    return train(Net().double(), ITEMS, trainer_class=made, **{**OPTIONS, "sam_check": "off", **options})


@every_method
@pytest.mark.parametrize("trainer_class", [Below, Outermost])
def test_the_step_is_left_out(trainer_class: type, method: Any, train: Any) -> None:
    options = {**method, "gradient_accumulation_steps": 2}
    whole = run_of(trainer_class, None, train, **options)
    with pytest.warns(UserWarning, match=r"none in the other.*optimizer step is left out"):
        lost = run_of(trainer_class, 2, train, **options)
    for mine, theirs in zip(lost.weights[:-1], whole.weights[:-1], strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(lost.weights[-1], lost.weights[-2])
    assert not torch.equal(whole.weights[-1], whole.weights[-2])
    assert lost.series("loss") == whole.series("loss")[:-1] + lost.series("loss")[-1:]
    assert "backward" not in vars(lost.trainer.accelerator)


@pytest.mark.parametrize("trainer_class", [Below, Outermost])
def test_a_first_pass_that_fails_each_time_is_a_skipped_batch(trainer_class: type, train: Any) -> None:
    class Never(trainer_class):  # type: ignore[misc, valid-type]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    run = run_of(Never, None, train, optim="sam", sam_rho=0.1, gradient_accumulation_steps=1)
    assert all(torch.equal(run.weights[0], later) for later in run.weights)


def test_of_several_micro_batches_in_scope_micro_batch_it_is_an_error(train: Any) -> None:
    options = {"optim": "sam", "sam_rho": 0.1, "sam_scope": "micro_batch", "gradient_accumulation_steps": 2}
    with pytest.raises(RuntimeError, match=r"cannot be left out here: use smaller batches"):
        run_of(Below, 1, train, **options)
