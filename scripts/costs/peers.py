"""Other implementations of the same methods that pip can install; each is skipped where it is missing."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from .arms import LEARNING_RATE, Arm, Setting, Training, floor_name


def peers(setting: Setting) -> list[Arm]:
    """Those that are installed, for whole batches."""
    try:
        from pytorch_optimizer import SAM, WSAM
    except ImportError:
        return []
    library = f"pytorch_optimizer {importlib.metadata.version('pytorch_optimizer')}"
    return [
        _peer(setting, f"{library} SAM", lambda m: SAM(m.parameters(), torch.optim.AdamW, lr=LEARNING_RATE), True),
        *(
            _peer(
                setting,
                f"{library} WSAM {mode}",
                lambda m, decouple=mode == "decoupled", gamma=gamma: WSAM(
                    m, m.parameters(), torch.optim.AdamW, gamma=gamma, decouple=decouple, lr=LEARNING_RATE
                ),
                False,
            )
            for mode, gamma in (("coupled", 0.6), ("decoupled", 0.9))
        ),
    ]


def _peer(setting: Setting, name: str, build: Any, first_pass_is_the_callers: bool) -> Arm:
    training = Training(setting)
    optimizer = training.optimizer = build(training.model)

    def closure() -> Any:
        optimizer.zero_grad()
        return training.whole()

    def step() -> None:
        if first_pass_is_the_callers:
            training.whole()
        optimizer.step(closure)
        optimizer.zero_grad()

    return Arm(name, step, floor_name(1), training, optimizer.state_dict)
