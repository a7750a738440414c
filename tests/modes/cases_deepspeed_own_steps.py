"""Two gloo ranks, the Trainer under DeepSpeed's ZeRO 1, 2 and 3 with a training_step of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zero_trainers import SGD, config, staged, weights

# isort: split
# Whatever imports DeepSpeed or Accelerate comes after that, which sets them up.

import torch
from accelerate.state import AcceleratorState
from cases_trainer import trainer
from models import Net, classification, collate
from specs_of_modes import named

import hf_sharpness

MEMORY = collate(classification(8, torch.float32, seed=7))
METHODS = ["sam", "wsam-coupled", "wsam-decoupled", "xsam"]


def replay(made: Any, model: Any) -> torch.Tensor:
    loss = model(**MEMORY)["loss"]
    made.accelerator.backward(loss)
    return loss.detach()


class Own:
    """Forward, loss and backward of its own."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()


class Twice:
    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        return loss + super().training_step(model, dict(MEMORY), *args, **kwargs)


class Before:
    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        model.train()
        replay(self, model)
        return super().training_step(model, *args, **kwargs)


class After:
    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        replay(self, model)
        return loss


class Inside:
    """No training_step of its own: a backward inside compute_loss."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        replay(self, model)
        return super().compute_loss(model, *args, **kwargs)


class Direct:
    """Adds a loss's gradient without Accelerate."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, *args, **kwargs)
        model(**MEMORY)["loss"].backward()
        return loss


class Skipping(Twice):
    """Leaves out the last micro-batch of the second step."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 1 and self.accelerator.sync_gradients:
            return torch.zeros(())
        return super().training_step(*args, **kwargs)


FORMS = {"own": Own, "twice": Twice, "before": Before, "after": After, "inside": Inside}


def made_by(form: type, directory: Path, stage: int, accumulation: int, **arguments: Any) -> Any:
    AcceleratorState._reset_state()
    library = type("Library", (), {})
    library.Trainer = type("Own", (form, hf_sharpness.Trainer), {})
    library.TrainingArguments = hf_sharpness.TrainingArguments
    options = SGD | {"sam_check": "off", "gradient_accumulation_steps": accumulation} | arguments
    made = trainer(
        directory, Net(), classification(80, torch.float32, seed=5), library, **options, deepspeed=config(stage)
    )
    made.weights_of = weights
    return made


@staged(*[f"{form}:{n}:{name}" for form in FORMS for n in (1, 2) for name in METHODS], "twice:2:sam-between-of-3")
def own_step(directory: Path, stage: int, variant: str) -> list[torch.Tensor]:
    form, accumulation, name = variant.split(":")
    made = made_by(FORMS[form], directory, stage, int(accumulation), **named(name).arguments())
    made.train()
    return made.weights


@staged("2", "1")
def skipping(directory: Path, stage: int, accumulation: str) -> dict[str, Any]:
    """Whole steps, of which one is skipped, or its last micro-batch."""
    made = made_by(Skipping, directory, stage, int(accumulation), **named("sam").arguments())
    return {"error": error_of(made), "weights": made.weights}


@staged("direct")
def direct(directory: Path, stage: int, name: str) -> dict[str, Any]:
    made = made_by(Direct, directory, stage, 2, **named("sam").arguments())
    return {"error": error_of(made), "weights": made.weights}


def error_of(made: Any) -> str:
    try:
        made.train()
    except RuntimeError as error:
        return str(error)
    return ""
