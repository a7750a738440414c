"""SAM (arXiv 2010.01412) and ASAM (arXiv 2102.11600)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .base import Method, hyperparameter, is_count, is_number
from .step import Step


@dataclasses.dataclass
class SAM(Method):
    """Sharpness-aware minimisation: descend with the gradient found a step of length rho up the slope.

        w_0 = w,  w_{j+1} = w_j + (rho/k) g_j / ||g_j||,  g_j = grad L_B(w_j);   BaseOpt(w, grad = g_k)

    ASAM measures the step relative to the weights: the direction is ``T^2 g / ||T g||`` with ``T = |w|``.
    """

    name: ClassVar[str] = "sam"
    paper: ClassVar[str] = "2010.01412"

    rho: float = hyperparameter(
        0.05,
        help="Total length of the ascent step (the radius of the neighbourhood). The papers used .05 (SAM on CIFAR-10 "
        "and ImageNet), .2 (WSAM, CIFAR from scratch, SGD), .15 (XSAM, CIFAR from scratch, SGD); ASAM wants about 10 "
        "times SAM's value (.5 - 2).",
        require="must be a finite number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    adaptive: bool = hyperparameter(
        False,
        help="Scale the ascent step by the size of each weight (ASAM, arXiv 2102.11600).",
        require="must be true or false",
        valid=lambda v: isinstance(v, bool),
    )
    steps: int = hyperparameter(
        1,
        help="Number of ascent steps k, each of length rho/k; every one costs a forward and a backward pass.",
        require="must be a whole number >= 1",
        valid=is_count,
    )

    @property
    def replays(self) -> int:
        return self.steps

    def run(self, step: Step) -> None:
        for _ in range(self.steps):
            step.climb(self.rho / self.steps, self.adaptive)
            step.replay()
