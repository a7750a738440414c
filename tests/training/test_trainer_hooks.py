"""Hooks that a Trainer registers within its own training_step."""

from __future__ import annotations

from typing import Any

import torch
from models import Net, classification

import hf_sharpness

ITEMS = classification(32)
OPTIONS = {"max_steps": 6, "learning_rate": 0.1, "max_grad_norm": 0.0}


class Gathering(hf_sharpness.Trainer):
    """Its loss is made of what a hook has seen in the same pass."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(inputs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        seen: list[Any] = []
        handle = self.model.first.register_forward_hook(lambda module, args, output: seen.append(output))
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs)
        handle.remove()
        loss = loss + 0.1 * seen[-1].square().mean()
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_hook_around_a_pass_of_ones_own(train: Any) -> None:
    """Without a perturbation a step of SAM is a stock step, bit for bit."""
    stock = train(Net().double(), ITEMS, trainer_class=Gathering, optim="sgd", **OPTIONS)
    ours = train(Net().double(), ITEMS, trainer_class=Gathering, optim="sam", base_optim="sgd", sam_rho=0.0, **OPTIONS)
    assert torch.equal(torch.stack(ours.weights), torch.stack(stock.weights))
    assert not ours.trainer.model.first._forward_hooks
