"""A training_step of the user's own that is taken as a whole, on two gloo ranks: DDP, and FSDP2 by transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from launch import case
from models import Batch, Net, classification
from torch import Tensor, nn

import hf_sharpness

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import cases_trainer
import own_steps
from specs_of_modes import named

FORMS = ["Before", "Twice", "Own", "Masked", "Extra"]
METHODS = ["sam", "wsam-coupled", "wsam-decoupled"]
SHARDED = ["wsam-coupled", "wsam-decoupled"]
SGD = {"base_optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
FACTORS = {"once": 1.0, "own": 1.0, "twice": 2.0, "edited": 0.5}


def trained_by(kind: type, directory: Path, model: nn.Module, items: list[Batch], **arguments: Any) -> list[Tensor]:
    """The weights after every step of a Trainer with that class before it."""
    library = type("Library", (), {})
    library.Trainer = type("Own", (kind, hf_sharpness.Trainer), {})
    library.TrainingArguments = hf_sharpness.TrainingArguments
    return cases_trainer.trained(directory, model, items, library, **arguments)["weights"]


def unwrapped(kind: type) -> type:
    """Those that look into the model for a layer are given the model itself for it."""

    class Unwrapped(kind):
        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
            if not hasattr(model, "first"):
                model.first = self.model.first
            try:
                return super().training_step(model, *args, **kwargs)
            finally:
                model._modules.pop("first", None)

    return Unwrapped


@case(
    *[
        f"{form}:{accumulation}:{name}"
        for form in FORMS
        for accumulation in (1, 2)
        for name in METHODS
        if accumulation == 2 or name == "sam"
    ]
)
def ddp_whole(directory: Path, variant: str) -> list[Tensor]:
    form, accumulation, name = variant.split(":")
    arguments = named(name).arguments() | SGD
    arguments |= {"gradient_accumulation_steps": int(accumulation), "max_steps": 3}
    kind = getattr(own_steps, form)
    kind = unwrapped(kind) if form == "Masked" else kind
    return trained_by(kind, directory, Net().double(), classification(96), **arguments)


class Scaled:
    """What the forms below amount to: the loss times a number."""

    factor = 1.0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * self.factor


class Once:
    """Calls the ordinary step once, as many trainers of libraries do: that is what is repeated."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().training_step(*args, **kwargs)


class WholeOwn:
    """Forward, loss and backward of its own."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class WholeTwice:
    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        return loss + super().training_step(model, inputs, *args, **kwargs)


class WholeEdited:
    """Halves the gradient in an optimizer step's last micro-batch."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(0.5)
        return loss


WHOLE = {"once": Once, "own": WholeOwn, "twice": WholeTwice, "edited": WholeEdited}


@case(
    *[f"{wrapper}:{form}:{name}" for wrapper in ("ddp", "fsdp2") for form in WHOLE for name in SHARDED],
    usually="ddp:edited:wsam-coupled|fsdp2:own:wsam-decoupled",
)
def llama_whole(directory: Path, variant: str) -> dict[str, list[Tensor]]:
    """The weights, and those of an ordinary step on so many times the loss."""
    wrapper, form, name = variant.split(":")
    arguments = cases_trainer.LLAMA | named(name).arguments() | SGD
    scaled = type("Factor", (Scaled,), {"factor": FACTORS[form]})
    runs = {}
    for key, kind in (("whole", WHOLE[form]), ("scaled", scaled)):
        model = cases_trainer.load(directory, **cases_trainer.WRAPPED[wrapper])
        runs[key] = trained_by(kind, directory, model, cases_trainer.texts(), **arguments)
    torch.distributed.barrier()
    return runs
