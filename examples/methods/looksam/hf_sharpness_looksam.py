"""LookSAM (arXiv 2203.02714, CVPR 2022): SAM's second pass in every k-th step only, its effect in all of them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from hf_sharpness.methods import Method, Step, hyperparameter, is_count, is_number
from hf_sharpness.vectors import add_, reciprocal, scale_


@dataclasses.dataclass
class LookSAM(Method):
    """SAM now and then; the steps between add what SAM's gradient last had beyond the plain one, at its size.

        every k-th step:  g_s = grad L_B(w_0 + rho g / ||g||),  BaseOpt(w_0, grad = g_s)
                          v = g_s - <g, g_s> / ||g||^2 g
        the others:       BaseOpt(w_0, grad = g + alpha ||g|| / ||v|| v)

    k 1 is SAM.
    """

    name: ClassVar[str] = "looksam"
    paper: ClassVar[str] = "2203.02714"
    keeps: ClassVar[tuple[str, ...]] = ("direction",)

    rho: float = hyperparameter(
        0.05,
        help="Length of the ascent step.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    k: int = hyperparameter(
        5,
        help="A second pass is made in every k-th step.",
        require="must be a whole number >= 1",
        valid=is_count,
    )
    alpha: float = hyperparameter(
        0.7,
        help="Size of the kept direction over that of the gradient.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )

    def replays_of(self, step: Step) -> int:
        return 1 if step.number % self.k == 0 or not step.has_kept("direction") else 0

    def run(self, step: Step) -> None:
        if not step.replays:
            g, v = step.gradient(), step.kept("direction")
            scale_(v, self.alpha * step.norm(g) * reciprocal(step.norm(v)))
            add_(g, v)
            return
        step.climb_keeping_gradient(self.rho)
        g = step.take_gradient()
        step.replay()
        g_s, v = step.gradient(), step.pad(g)
        scale_(v, -step.dot(v, g_s) * reciprocal(step.norm(v)) ** 2)
        add_(v, g_s)
        step.keep("direction", v)
