"""The methods as the papers write them: from weights `w` to the gradient the base optimizer is handed.

`problem.gradient(w)` returns the loss and gradient of the whole effective batch, `problem.loss(w)` the loss alone;
`problem.parts` are the same for each micro-batch alone, their losses summing to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .run import Problem

EPS = 1e-12


@dataclass
class Handed:
    """`gradient` goes to the base optimizer (after clipping), `extra` is subtracted from the weights, times lr and
    times the clip coefficient of `gradient`, and divided by the base optimizer's preconditioner if so marked."""

    gradient: Tensor
    extra: Tensor | None
    loss: float
    perturbed_loss: float = nan
    ascent_grad_norm: float = nan
    perturbation_norm: float = nan
    alpha: float = nan
    psi: float = nan
    preconditioned: bool = False


@dataclass
class Ascent:
    displacement: Tensor
    loss: float
    gradient: Tensor


def climb(problem: Problem, w: Tensor, g: Tensor, rho: float, steps: int, adaptive: bool) -> Ascent:
    """`steps` ascent steps of total length rho from w, where the gradient is g (arXiv 2010.01412, ASAM 2102.11600)."""
    T = w.abs() if adaptive else torch.ones_like(w)
    displacement = torch.zeros_like(w)
    for _ in range(steps):
        displacement = displacement + (rho / steps) * T**2 * g / ((T * g).norm() + EPS)
        loss, g = problem.gradient(w + displacement)
    return Ascent(displacement, loss, g)


@dataclass
class Plain:
    """No method: the base optimizer takes the gradient."""

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        loss, g = problem.gradient(w)
        return Handed(g, None, loss, ascent_grad_norm=g.norm().item())


@dataclass
class Sam:
    """arXiv 2010.01412: the gradient at the top of the climb."""

    rho: float = 0.05
    adaptive: bool = False
    steps: int = 1
    scope: str = "global"
    fraction: float = 1.0
    ranks: int = 1

    def from_a_part(self, problem: Problem, w: Tensor) -> tuple[Handed, Tensor]:
        """g_s estimated from the first micro-batches of every rank: g + n/n_S (sum_S of grad there - grad here).

        With scope "device" every rank climbs by its own gradient.
        """
        loss, g = problem.gradient(w)
        alone = self.scope == "device"
        g_s, perturbed, distance = g.clone(), loss, nan
        for own in problem.blocks(self.ranks) if alone else [problem]:
            slope = own.gradient(w)[1]
            T = w.abs() if self.adaptive else torch.ones_like(w)
            delta = self.rho * T**2 * slope / ((T * slope).norm() + EPS)
            distance = nan if alone else delta.norm().item()
            for block in own.blocks(self.ranks) if not alone else [own]:
                n = len(block.indices)
                n_s = max(1, round(self.fraction * n))
                part = block.first(n_s)
                (loss_there, there), (loss_here, here) = part.gradient(w + delta), part.gradient(w)
                g_s += n / n_s * (there - here)
                perturbed += n / n_s * (loss_there - loss_here)
        return Handed(g, None, loss, perturbed, g.norm().item(), distance), g_s

    def climb(self, problem: Problem, w: Tensor) -> tuple[Handed, Tensor]:
        """The clean gradient (as `Handed`) and g_s."""
        if self.fraction < 1:
            return self.from_a_part(problem, w)
        loss, g = problem.gradient(w)
        if self.scope == "micro_batch":  # every micro-batch climbs by its own gradient
            tops = [climb(p, w, p.gradient(w)[1], self.rho, self.steps, self.adaptive) for p in problem.parts]
            g_s, perturbed, distance = sum(t.gradient for t in tops), sum(t.loss for t in tops), nan
        else:
            top = climb(problem, w, g, self.rho, self.steps, self.adaptive)
            g_s, perturbed, distance = top.gradient, top.loss, top.displacement.norm().item()
        return Handed(g, None, loss, perturbed, g.norm().item(), distance), g_s

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        handed, g_s = self.climb(problem, w)
        handed.gradient = g_s
        return handed


@dataclass
class Wsam(Sam):
    """arXiv 2305.15817: L + gamma/(1-gamma) (L_s - L)."""

    mode: str = "decoupled"
    gamma: float = 0.9

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        a = self.gamma / (1 - self.gamma)
        handed, g_s = self.climb(problem, w)
        g = handed.gradient
        if self.mode == "coupled":
            handed.gradient = (1 - a) * g + a * g_s
        else:
            handed.extra = a * (g_s - g)
            handed.preconditioned = self.mode == "preconditioned"
        return handed


@dataclass
class Xsam(Sam):
    """arXiv 2603.10048: descend along the direction, in the plane of displacement and gradient, that climbs most."""

    rho_max: float | None = None
    alpha: float | None = None
    alpha_max: float = 2.0
    alpha_points: int = 21
    refresh: str | int = "epoch"

    def __post_init__(self) -> None:
        self.alpha_star = self.alpha

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        loss, g = problem.gradient(w)
        top = climb(problem, w, g, self.rho, self.steps, self.adaptive)
        g_k, reach = top.gradient, top.displacement.norm()
        v1 = g_k / g_k.norm()
        v0 = top.displacement / reach if reach > 0 else v1
        psi = torch.arccos(torch.clamp(v0 @ v1, -1, 1))
        if self.alpha is None and refresh:
            self.alpha_star = self.search(problem, w, v0, v1, psi)
        gradient = g_k.norm() * slerp(v0, v1, psi, self.alpha_star)
        return Handed(
            gradient, None, loss, top.loss, g.norm().item(), reach.item(), alpha=self.alpha_star, psi=psi.item()
        )

    def search(self, problem: Problem, w: Tensor, v0: Tensor, v1: Tensor, psi: Tensor) -> float:
        rho_max = 2 * self.rho if self.rho_max is None else self.rho_max
        best, alpha_star = -inf, None
        for i in range(self.alpha_points):
            alpha = self.alpha_max * i / (self.alpha_points - 1)
            probe = problem.loss(w + rho_max * slerp(v0, v1, psi, alpha))
            if isfinite(probe) and probe > best:
                best, alpha_star = probe, alpha
        return alpha_star


def slerp(v0: Tensor, v1: Tensor, psi: Tensor, alpha: float) -> Tensor:
    """Where the directions are parallel or opposed there is no plane: v1."""
    if torch.sin(psi) < 1e-6:
        return v1
    return (torch.sin((1 - alpha) * psi) * v0 + torch.sin(alpha * psi) * v1) / torch.sin(psi)
