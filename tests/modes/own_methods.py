"""Methods that use all that Step offers, for the modes of parallelism."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_sharpness.methods import Method, Step
from hf_sharpness.vectors import add_, scale_


@dataclasses.dataclass
class Everything(Method):
    """Climbs a random direction; hands over g_s without its part along g, plus an average and the momentum.

    w_1 = w_0 + .2 (1 - progress) d / ||d||,  m = .9 m + .1 g,  h = g_s - <g, g_s> / <g, g> g + m + .1 momentum
    """

    name: ClassVar[str] = "everything"
    paper: ClassVar[str] = ""
    keeps: ClassVar[tuple[str, ...]] = ("average",)
    replays: ClassVar[int] = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        self.directions: list[list[Tensor]] = []

    def run(self, step: Step) -> None:
        direction = step.random_direction()
        self.directions.append([t.clone() for t in direction])
        step.climb_along(direction, 0.2 * (1 - step.progress))
        g = step.take_gradient()
        step.replay()
        h, g = step.gradient(), step.pad(g)
        add_(h, [-t * step.dot(g, h) / step.dot(g, g) for t in g])
        average = step.kept("average") or [torch.zeros_like(t) for t in g]
        scale_(average, 0.9)
        add_(average, step.pad(g), 0.1)
        add_(h, average)
        step.keep("average", average)
        momentum = step.optimizer_state("momentum")
        if momentum is not None:
            add_(h, momentum, 0.1)


@dataclasses.dataclass
class EveryOther(Method):
    """SAM in every other step, nothing in the others."""

    name: ClassVar[str] = "everyother"
    paper: ClassVar[str] = ""
    scopes: ClassVar[tuple[str, ...]] = ("global", "device", "micro_batch")

    def replays_of(self, step: Step) -> int:
        return step.number % 2

    def run(self, step: Step) -> None:
        if step.replays:
            step.climb(0.2)
            step.replay()


@dataclasses.dataclass
class Unsteady(Method):
    """Announces what it is told to, and makes what it is told to."""

    name: ClassVar[str] = "unsteady"
    paper: ClassVar[str] = ""
    scopes: ClassVar[tuple[str, ...]] = ("global", "device")

    announced: Any = None
    made: int = 0

    def replays_of(self, step: Step) -> int:
        return self.announced

    def run(self, step: Step) -> None:
        for _ in range(self.made):
            step.climb(0.2)
            step.replay()


@dataclasses.dataclass
class Alone(Method):
    """Draws a direction, and notes it."""

    name: ClassVar[str] = "alone"
    paper: ClassVar[str] = ""
    scopes: ClassVar[tuple[str, ...]] = ("global", "device")
    replays: ClassVar[int] = 0  # type: ignore[misc]

    def run(self, step: Step) -> None:
        self.drawn = torch.cat([t.reshape(-1) for t in step.random_direction()])


@dataclasses.dataclass
class MomentumAscent(Method):
    """Climbs against the base optimizer's momentum (Momentum-SAM, arXiv 2401.12033); in the first step nowhere."""

    name: ClassVar[str] = "momentumascent"
    paper: ClassVar[str] = "2401.12033"
    replays: ClassVar[int] = 1  # type: ignore[misc]

    def run(self, step: Step) -> None:
        momentum = step.optimizer_state("momentum")
        if momentum is not None:
            step.climb_along(momentum, -0.2)
        step.replay()


@dataclasses.dataclass
class Drawing(Method):
    """Measures a random direction."""

    name: ClassVar[str] = "drawing"
    paper: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]] = ("direction_norm", "direction_dot")
    replays: ClassVar[int] = 0  # type: ignore[misc]

    def run(self, step: Step) -> None:
        direction = step.random_direction()
        self.elements = sum(int((t != 0).sum()) for t in direction)
        self.squares = sum(float(t.double().square().sum()) for t in direction)
        step.metrics["direction_norm"] = step.norm(direction)
        step.metrics["direction_dot"] = step.dot(direction, direction)
