"""LE-SAM (arXiv 2605.10183, ICML 2026): climb as far as a rise of the loss allows, instead of a fixed length."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from hf_sharpness.methods import Method, Step, hyperparameter, is_number
from hf_sharpness.vectors import reciprocal


@dataclasses.dataclass
class LESAM(Method):
    """SAM whose radius makes the linearised loss rise by a budget, which is annealed to 0 towards the end.

    rho_t = min(sigma_t / ||g||, rho_max),  w_1 = w_0 + rho_t g / ||g||,  BaseOpt(w_0, grad = grad L_B(w_1))
    sigma_t = sigma (1 + cos(pi a)) / 2,  a from 0 to 1 between ``anneal_from`` and the end of the training
    """

    name: ClassVar[str] = "lesam"
    paper: ClassVar[str] = "2605.10183"
    metrics: ClassVar[tuple[str, ...]] = ("lesam_rho",)

    sigma: float = hyperparameter(
        0.1,
        help="By how much the linearised loss may rise (in the units of the loss).",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    rho_max: float = hyperparameter(
        0.2,
        help="The longest ascent step: where the gradient is small, the budget would allow any.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    anneal_from: float = hyperparameter(
        0.8,
        help="The part of the training (0 to 1) from where the budget falls to 0.",
        require="must be a number with 0 <= anneal_from < 1",
        valid=lambda v: is_number(v) and 0 <= v < 1,
    )

    @property
    def replays(self) -> int:
        return 1

    def run(self, step: Step) -> None:
        annealed = max(0.0, step.progress - self.anneal_from) / (1 - self.anneal_from)
        budget = self.sigma * (1 + math.cos(math.pi * annealed)) / 2
        norm = step.norm(step.gradient()) / step.loss_scale
        rho = (budget * reciprocal(norm)).clamp(max=self.rho_max)
        step.climb(rho)
        step.replay()
        step.metrics["lesam_rho"] = rho
