"""Two gloo ranks, the Trainer under DeepSpeed's ZeRO 1, 2 and 3: the example methods, and what else Step offers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from zero_trainers import SGD, config, staged, zero_trainer

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import torch
from cases import EXAMPLES
from models import Net
from own_methods import Drawing, MomentumAscent
from torch import nn

from hf_sharpness.methods import register

EXAMPLE = {str(example): example for example in EXAMPLES}
for cls in (MomentumAscent, Drawing, *(example.method_class for example in EXAMPLES)):
    register(cls)
CUT = {"sub_group_size": 20, "parameter_alignment": True}
"""ZeRO-3 in several parts, and with gaps after the single weight of a PReLU."""


def made(directory: Path, stage: int, **arguments: Any) -> Any:
    return zero_trainer(directory, Net(nn.PReLU), config(stage, CUT), **SGD, **arguments)


@staged(*EXAMPLE)
def example(directory: Path, stage: int, name: str) -> list[torch.Tensor]:
    trainer = made(directory, stage, **EXAMPLE[name].arguments)
    trainer.train()
    return trainer.weights


@staged("momentumascent")
def momentum(directory: Path, stage: int, name: str) -> list[torch.Tensor]:
    trainer = made(directory, stage, optim=name)
    trainer.train()
    return trainer.weights


@staged("drawing")
def drawing(directory: Path, stage: int, name: str) -> dict[str, Any]:
    """What this rank drew in the last step, and what all drew by the norm and dot product."""
    trainer = made(directory, stage, optim=name)
    seen: dict[str, Any] = {}
    close = trainer._close_sharpness

    def look() -> None:
        if trainer._sharpness_engine is not None:
            seen.update(
                elements=trainer._sharpness_engine.method.elements, squares=trainer._sharpness_engine.method.squares
            )
        close()

    trainer._close_sharpness = look
    trainer.train()
    return seen | trainer.state.log_history[-2]


@staged("friendly_sam", "looksam")
def resumed(directory: Path, stage: int, name: str) -> dict[str, Any]:
    folder = directory / f"kept-{stage}-{name}"
    saving = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(folder)}
    runs = []
    for checkpoint in (None, str(folder / "checkpoint-2")):
        trainer = made(directory, stage, **saving, **EXAMPLE[name].arguments)
        trainer.train(resume_from_checkpoint=checkpoint)
        runs.append(trainer.weights)
    files = sorted(file.name for file in (folder / "checkpoint-2").glob("sharpness_state*"))
    return {"through": runs[0], "resumed": runs[1], "files": files}
