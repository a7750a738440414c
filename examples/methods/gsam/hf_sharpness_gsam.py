"""GSAM (arXiv 2203.08065, ICLR 2022): SAM that also closes the gap between the perturbed loss and the loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from hf_sharpness.methods import Method, Step, hyperparameter, is_number
from hf_sharpness.vectors import add_, reciprocal, scale_


@dataclasses.dataclass
class GSAM(Method):
    """Descend the perturbed loss, and along the part of the loss's gradient that leaves the perturbed loss as it is.

        rho_t = rho_min + (rho - rho_min) lr_t / lr_max
        w_1 = w_0 + rho_t g / ||g||,  g_s = grad L_B(w_1),  g_n = g - <g, g_s> / ||g_s||^2 g_s
        BaseOpt(w_0, grad = g_s - alpha g_n)

    alpha 0 with a constant learning rate is SAM. (The paper's rho_t also knows a smallest learning rate: here 0.)
    """

    name: ClassVar[str] = "gsam"
    paper: ClassVar[str] = "2203.08065"
    metrics: ClassVar[tuple[str, ...]] = ("gsam_rho",)

    rho: float = hyperparameter(
        0.05,
        help="Length of the ascent step where the learning rate is highest.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    rho_min: float = hyperparameter(
        0.0,
        help="Its length where the learning rate is 0.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    alpha: float = hyperparameter(
        0.4,
        help="Weight of the part of the gradient that is orthogonal to the perturbed one.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )

    @property
    def replays(self) -> int:
        return 1

    def run(self, step: Step) -> None:
        rate, highest = step.learning_rate, step.peak_learning_rate
        rho = self.rho_min + (self.rho - self.rho_min) * (rate / highest if highest else 1.0)
        step.climb_keeping_gradient(rho)
        g = step.take_gradient()
        step.replay()
        g_s, g = step.gradient(), step.pad(g)
        along = step.dot(g, g_s) * reciprocal(step.norm(g_s)) ** 2
        scale_(g_s, 1 + self.alpha * along)
        add_(g_s, g, -self.alpha)
        step.metrics["gsam_rho"] = rho
