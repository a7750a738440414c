"""Methods that the tests of the registry register."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from transformers import HfArgumentParser

from hf_sharpness import TrainingArguments
from hf_sharpness.methods import METHODS, SAM, Method, Step, hyperparameter, registry

BUILT_IN = tuple(METHODS)


def number(default: float | None, **options: Any) -> Any:
    return hyperparameter(default, help="A number, 10 % of it.", require="must be a number >= 0", **options)


@dataclasses.dataclass
class Own(Method):
    """Climbs by ``radius``, and hands over the gradient there times ``factor``."""

    name: ClassVar[str] = "own"
    metrics: ClassVar[tuple[str, ...]] = ("own_factor",)
    radius: float = number(0.1, valid=lambda v: v >= 0)
    alpha: float = number(0.4, valid=lambda v: v >= 0)
    rounds: int = number(1, valid=lambda v: v >= 1, most=50)

    @property
    def replays(self) -> int:
        return 1

    def run(self, step: Step) -> None:
        step.climb(self.radius)
        step.replay()
        for gradient in step.gradient():
            gradient.mul_(self.alpha)
        step.metrics["own_factor"] = self.alpha


@dataclasses.dataclass
class Wide(SAM):
    """SAM with another default."""

    name: ClassVar[str] = "wide"
    rho: float = 0.2


@pytest.fixture(autouse=True)
def only_built_in_methods() -> Iterator[None]:
    yield
    for name in set(METHODS) - set(BUILT_IN):
        registry.unregister(name)


def command_line(*line: str, kind: type = TrainingArguments) -> Any:
    return HfArgumentParser(kind).parse_args_into_dataclasses(["--output_dir", "out", *line], look_for_args_file=False)[
        0
    ]
