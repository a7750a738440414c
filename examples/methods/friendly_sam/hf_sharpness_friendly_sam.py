"""Friendly-SAM (arXiv 2403.12350, CVPR 2024): climb along what is noise in the batch's gradient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from hf_sharpness.methods import Method, Step, hyperparameter, is_number
from hf_sharpness.vectors import add_, clone, scale_


@dataclasses.dataclass
class FriendlySAM(Method):
    """SAM whose ascent leaves out the gradient of the whole data set, estimated by an average over the steps.

        m_t = lambda m_{t-1} + (1 - lambda) g_t,  m_0 = 0,  d_t = g_t - sigma m_t
        w_1 = w_0 + rho d_t / ||d_t||,  BaseOpt(w_0, grad = grad L_B(w_1))

    sigma 0 is SAM. (The authors' code has m_{t-1} in d_t, which is the same direction where sigma is 1, and m_1 = g_1.)
    """

    name: ClassVar[str] = "friendlysam"
    paper: ClassVar[str] = "2403.12350"
    keeps: ClassVar[tuple[str, ...]] = ("average",)

    rho: float = hyperparameter(
        0.05,
        help="Length of the ascent step.",
        require="must be a number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    sigma: float = hyperparameter(
        1.0,
        help="How much of the averaged gradient the ascent leaves out.",
        require="must be a number",
        valid=is_number,
    )
    decay: float = hyperparameter(
        0.9,
        help="The part of the average that a step keeps (the paper's lambda).",
        require="must be a number with 0 <= decay < 1",
        valid=lambda v: is_number(v) and 0 <= v < 1,
    )

    @property
    def replays(self) -> int:
        return 1

    def run(self, step: Step) -> None:
        g = step.gradient()
        average = step.kept("average") if step.has_kept("average") else [torch.zeros_like(t) for t in g]
        scale_(average, self.decay)
        add_(average, g, 1 - self.decay)
        noise = clone(average)
        scale_(noise, -self.sigma)
        add_(noise, g)
        step.keep("average", average)
        step.climb_along(noise, self.rho)
        step.replay()
