"""Opacus (differential privacy) takes its gradient from p.grad_sample: refused, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, classification, collate
from reference import flat
from torch import Tensor, nn

import hf_sharpness
from hf_sharpness import SAM, WSAM, XSAM

opacus = pytest.importorskip("opacus")

REFUSED = r"steps with p\.grad_sample, .*use an optimizer that steps with p\.grad, or train without"
MODES = {"flat": ("flat", "hooks"), "per_layer": ("per_layer", "hooks"), "ghost": ("flat", "ghost")}


def private(kind: str) -> tuple[nn.Module, Any]:
    """A model whose backward pass leaves a gradient for every example, and the optimizer for it."""
    clipping, mode = MODES[kind]
    model = Net()
    loader = torch.utils.data.DataLoader(classification(16, torch.float32), batch_size=4, collate_fn=collate)
    bound = [1.0] * len(list(model.parameters())) if kind == "per_layer" else 1.0
    made = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=1.0,
        max_grad_norm=bound,
        clipping=clipping,
        grad_sample_mode=mode,
    )
    return made[0], made[1]


@pytest.mark.parametrize("kind", list(MODES))
@pytest.mark.parametrize("method", [SAM, WSAM, XSAM])
def test_its_optimizers_are_refused_in_a_loop_of_ones_own(method: Any, kind: str) -> None:
    model, optimizer = private(kind)
    with pytest.raises(ValueError, match=type(optimizer).__name__ + " " + REFUSED):
        method(model, optimizer)


@pytest.mark.parametrize("kind", list(MODES))
@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
def test_its_optimizers_are_refused_by_the_trainer(optim: str, kind: str, tmp_path: Path) -> None:
    """Wrapped by Accelerate, before any weight has moved; a plain optim trains on."""
    model, optimizer = private(kind)
    before = flat(model)
    arguments = hf_sharpness.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, optim=optim, base_optim="sgd"
    )
    trainer = hf_sharpness.Trainer(
        model=model,
        args=arguments,
        train_dataset=classification(16, torch.float32),
        data_collator=collate,
        optimizers=(optimizer, None),
    )
    with pytest.raises(ValueError, match=type(optimizer).__name__ + " " + REFUSED):
        trainer.train()
    assert torch.equal(flat(model), before)


def test_its_model_is_refused_with_any_optimizer() -> None:
    model, optimizer = private("flat")
    before, batch = flat(model), collate(classification(4, torch.float32))
    method = SAM(model, optimizer.original_optimizer)

    def closure() -> Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss.detach()

    with pytest.raises(ValueError, match=r"leaves gradients in p\.grad_sample"):
        method.backward(closure)
    assert torch.equal(flat(model), before)
