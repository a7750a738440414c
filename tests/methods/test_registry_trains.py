"""A registered method of one's own trains, alone and in a search over methods."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from own_registered import Own, Wide
from own_registered import only_built_in_methods as only_built_in_methods

from hf_sharpness import SharpnessAware, TrainingArguments
from hf_sharpness.methods import register


def test_a_search_over_methods_takes_the_default_of_each() -> None:
    """As ``hyperparameter_search`` sets arguments: one by one, on arguments that were made before."""
    register(Wide)
    args = TrainingArguments("out", optim="sam")
    for optim, given, expected in [("wide", None, 0.2), ("sam", None, 0.05), ("wide", 0.05, 0.05), ("sam", None, 0.05)]:
        trial = copy.deepcopy(args)
        trial.optim = optim
        if given is not None:
            trial.sam_rho = given
        trial.check_sharpness()
        assert (trial.sam_rho, trial.method().rho) == (expected, expected)


ITEMS = classification(24)


def expected(radius: float, factor: float, lr: float) -> torch.Tensor:
    """SGD along ``factor`` times the gradient at w + radius g/||g||, written out."""
    model = Net().double()
    for (batch,) in steps_of(ITEMS, 8):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(model(**batch)["loss"], parameters)
        length = torch.sqrt(sum((g**2).sum() for g in gradients))
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p += radius * g / length
        perturbed = torch.autograd.grad(model(**batch)["loss"], parameters)
        with torch.no_grad():
            for p, g, h in zip(parameters, gradients, perturbed, strict=True):
                p -= radius * g / length + lr * factor * h
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_trains(train: Any, tmp_path: Path) -> None:
    """In the Trainer and in a plain loop, exactly; its metrics are logged; card and config name it."""
    register(Own)
    options = {"optim": "own", "base_optim": "sgd", "own_radius": 0.3, "own_alpha": 0.5}
    run = train(Net().double(), ITEMS, learning_rate=0.2, max_steps=3, max_grad_norm=0.0, **options)
    reference = expected(0.3, 0.5, 0.2)
    torch.testing.assert_close(run.weights[-1], reference, rtol=1e-9, atol=1e-9)
    assert run.series("own_factor") == [0.5] * 3
    assert run.series("perturbation_norm") == pytest.approx([0.3] * 3, rel=1e-5)

    run.trainer.model.config = None
    run.trainer.save_model(str(tmp_path / "saved"))
    assert TrainingArguments("out", sharpness_config=str(tmp_path / "saved")).method() == Own(radius=0.3, alpha=0.5)

    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    method = SharpnessAware(Own(radius=0.3, alpha=0.5), model, optimizer)
    for (batch,) in steps_of(ITEMS, 8):

        def closure(batch: Any = batch) -> torch.Tensor:
            loss = model(**batch)["loss"]
            loss.backward()
            return loss

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights, reference, rtol=1e-9, atol=1e-9)
    assert method.metrics["own_factor"] == 0.5
