"""What is measured: steps of the base optimizer, of the floor, and of each method, as functions without arguments.

All of them train a model of their own on the same batch. The floor of a method with k further passes is 1 + k forward
and backward passes and one step of the base optimizer: what any implementation has to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_sharpness import SAM, WSAM, XSAM

from .subjects import Subject

LEARNING_RATE = 1e-5


@dataclasses.dataclass
class Setting:
    """In which circumstances.

    Attributes:
        subject: the model and its batch.
        device: where.
        micro_batches: into how many a batch is divided.
        bf16: under bf16 autocast.
        wrap: makes of the model what is trained (DDP).
    """

    subject: Subject
    device: torch.device
    micro_batches: int = 1
    bf16: bool = False
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model


class Training:
    """A model, its optimizer, and its batch."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = setting.wrap(setting.subject.model(setting.device))
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.batches = setting.subject.batches(setting.device, setting.micro_batches)

    def loss(self, index: int) -> Tensor:
        """Forward and backward of a micro-batch; its share of the batch's loss."""
        device = self.setting.device.type
        precision = torch.autocast(device, torch.bfloat16) if self.setting.bf16 else contextlib.nullcontext()
        with precision:
            loss = self.model(**self.batches[index]).loss / len(self.batches)
        loss.backward()
        return loss

    def closures(self) -> list[Callable[[], Tensor]]:
        return [lambda index=index: self.loss(index) for index in range(len(self.batches))]

    def whole(self) -> Tensor:
        """Forward and backward of the batch."""
        return torch.stack([closure().detach() for closure in self.closures()]).sum()


@dataclasses.dataclass
class Arm:
    """One of those that take turns.

    Attributes:
        name: in tables.
        step: makes one optimizer step.
        floor: the name of the arm that it is compared with; empty for the floors themselves.
        training: whose model it trains; None where that is elsewhere.
        state: returns what a checkpoint must hold besides the model.
    """

    name: str
    step: Callable[[], None]
    floor: str = ""
    training: Training | None = None
    state: Callable[[], Any] = dict
    close: Callable[[], None] = lambda: None


METHODS: dict[str, tuple[Callable[..., Any], int]] = {
    "SAM": (SAM, 1),
    "WSAM coupled": (lambda m, o, **k: WSAM(m, o, mode="coupled", **k), 1),
    "WSAM decoupled": (lambda m, o, **k: WSAM(m, o, mode="decoupled", **k), 1),
    "WSAM preconditioned": (lambda m, o, **k: WSAM(m, o, mode="preconditioned", **k), 1),
    "XSAM, alpha fixed": (lambda m, o, **k: XSAM(m, o, alpha=1.2, **k), 1),
    "ASAM": (lambda m, o, **k: SAM(m, o, rho=0.5, adaptive=True, **k), 1),
    "SAM, 2 steps": (lambda m, o, **k: SAM(m, o, steps=2, **k), 2),
    "XSAM, searching": (lambda m, o, **k: XSAM(m, o, refresh=1, **k), 1),
}
"""How a plain loop makes each, and how many further passes it has."""
MAIN = list(METHODS)[:5]
CHEAPER: dict[str, dict[str, Any]] = {
    "SAM, fraction 1/4": {"fraction": 0.25},
    "SAM, norms only": {"target_modules": "norm"},
    "SAM, head only": {"target_modules": "head"},
}
"""Cheaper steps of SAM, by the options that they take."""


def floor_name(replays: int) -> str:
    """What the floor of so many further passes is called."""
    return "base" if not replays else f"floor, {1 + replays} passes"


def floor(setting: Setting, replays: int) -> Arm:
    """1 + replays forward and backward passes, and one step of the base optimizer; the base itself with 0."""
    training = Training(setting)

    def step() -> None:
        for _ in range(replays):
            training.whole()
            training.optimizer.zero_grad()
        training.whole()
        training.optimizer.step()
        training.optimizer.zero_grad()

    return Arm(floor_name(replays), step, "", training, training.optimizer.state_dict)


def cheaper(setting: Setting) -> list[Arm]:
    """The cheaper steps; a part of a batch wants micro-batches in a plain loop."""
    return [
        dataclasses.replace(ours(setting, "SAM", **options), name=name)
        for name, options in CHEAPER.items()
        if setting.micro_batches > 1 or "fraction" not in options
    ]


def ours(setting: Setting, name: str, **options: Any) -> Arm:
    """One of this package's methods in a plain loop, in a step that is not logged.

    Args:
        setting: in which circumstances.
        name: a key of METHODS.
        options: of its steps.
    """
    build, replays = METHODS[name]
    training = Training(setting)
    method = build(training.model, training.optimizer, check="off", **options)
    closures = training.closures()

    def step() -> None:
        method.backward(closures)
        training.optimizer.step()
        training.optimizer.zero_grad()

    def state() -> Any:
        return training.optimizer.state_dict(), method.state_dict()

    return Arm(name, step, floor_name(replays), training, state)
