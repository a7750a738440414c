"""Optimizers that a Trainer holds, for other tensors than the model's weights, and steps in every pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification
from torch import nn

import hf_sharpness

ITEMS = classification(32)
OPTIONS = {"max_steps": 12, "learning_rate": 0.1, "max_grad_norm": 0.0, "gradient_accumulation_steps": 2}


class Critical(hf_sharpness.Trainer):
    """Trains a critic, which says how much the loss counts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.critic = nn.Linear(3, 1).double()
        self.critic_optimizer = self.made(torch.optim.Adam(self.critic.parameters(), lr=0.1))
        self.critic_scheduler = torch.optim.lr_scheduler.StepLR(self.critic_optimizer, 3, 0.5)

    def made(self, optimizer: Any) -> Any:
        return optimizer

    def judged(self, logits: Any) -> Any:
        self.critic_optimizer.zero_grad()
        (self.critic(logits.detach()) - 1).square().mean().backward()
        self.critic_optimizer.step()
        self.critic_scheduler.step()
        return self.critic(logits).mean()


class InTheLoss(Critical):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        output = model(**inputs)
        return output["loss"] - 0.3 * self.judged(output["logits"])


class InTheStep(Critical):
    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            logits = model(inputs["x"])["logits"]
        self.factor = 1 + self.judged(logits).detach() ** 2
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self.factor * super().compute_loss(*args, **kwargs)


class MadeOnTheWay(InTheStep):
    """In the first step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        hf_sharpness.Trainer.__init__(self, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "critic"):
            self.critic = nn.Linear(3, 1).double()
            self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=0.1)
            self.critic_scheduler = torch.optim.lr_scheduler.StepLR(self.critic_optimizer, 3, 0.5)
        return super().training_step(*args, **kwargs)


class Prepared(InTheLoss):
    def made(self, optimizer: Any) -> Any:
        return self.accelerator.prepare(optimizer)


@pytest.mark.parametrize("kind", [InTheLoss, InTheStep, MadeOnTheWay, Prepared])
def test_an_optimizer_of_other_tensors_steps_once(kind: type, train: Any) -> None:
    """Without a perturbation a step of SAM is a stock step, bit for bit."""
    stock = train(Net().double(), ITEMS, trainer_class=kind, optim="sgd", **OPTIONS)
    ours = train(Net().double(), ITEMS, trainer_class=kind, optim="sam", base_optim="sgd", sam_rho=0.0, **OPTIONS)
    assert torch.equal(torch.stack(ours.weights), torch.stack(stock.weights))
    for found, expected in zip(ours.trainer.critic.parameters(), stock.trainer.critic.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert ours.trainer.critic_scheduler.last_epoch == stock.trainer.critic_scheduler.last_epoch


def test_no_epochs_are_no_steps(train: Any) -> None:
    """A model is to be evaluated as it is."""
    run = train(Net().double(), ITEMS, optim="sam", num_train_epochs=0)
    assert run.trainer.state.global_step == 0
    assert torch.equal(run.model.first.weight, Net().double().first.weight)
