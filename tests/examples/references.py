"""The example methods on one flat float64 vector, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from reference.methods import Handed
from reference.run import Problem
from torch import Tensor


class Gsam:
    """arXiv 2203.08065, algorithm 1 with rho_t of section 4 and a smallest learning rate of 0."""

    def __init__(self, rates: Sequence[float], rho: float = 0.05, rho_min: float = 0.0, alpha: float = 0.4):
        self.rates, self.rho, self.rho_min, self.alpha = rates, rho, rho_min, alpha
        self.number = 0

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        share = self.rates[self.number] / max(self.rates)
        rho = share * self.rho + (1 - share) * self.rho_min
        self.number += 1
        loss, g = problem.gradient(w)
        _, g_s = problem.gradient(w + rho * g / g.norm())
        unit = g_s / g_s.norm()
        return Handed(g_s - self.alpha * (g - (unit @ g) * unit), None, loss)


class FriendlySam:
    """arXiv 2403.12350, algorithm 1."""

    def __init__(self, rates: Sequence[float], rho: float = 0.05, sigma: float = 1.0, decay: float = 0.9):
        self.rho, self.sigma, self.decay = rho, sigma, decay
        self.m: Tensor | None = None

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        loss, g = problem.gradient(w)
        m = torch.zeros_like(g) if self.m is None else self.m
        self.m = self.decay * m + (1 - self.decay) * g
        d = g - self.sigma * self.m
        return Handed(problem.gradient(w + self.rho * d / d.norm())[1], None, loss)


class LookSam:
    """arXiv 2203.02714, algorithm 1."""

    def __init__(self, rates: Sequence[float], rho: float = 0.05, k: int = 5, alpha: float = 0.7):
        self.rho, self.k, self.alpha = rho, k, alpha
        self.number, self.v = 0, torch.zeros(())

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        loss, g = problem.gradient(w)
        again = self.number % self.k == 0
        self.number += 1
        if not again:
            return Handed(g + self.alpha * g.norm() / self.v.norm() * self.v, None, loss)
        _, g_s = problem.gradient(w + self.rho * g / g.norm())
        cosine = (g @ g_s) / (g.norm() * g_s.norm())
        self.v = g_s - g_s.norm() * cosine * g / g.norm()
        return Handed(g_s, None, loss)


class LeSam:
    """arXiv 2605.10183: rho_t = min(sigma_t / ||g||, rho_max), sigma_t along half a cosine to 0."""

    def __init__(self, rates: Sequence[float], sigma: float = 0.1, rho_max: float = 0.2, anneal_from: float = 0.8):
        self.sigma, self.rho_max, self.anneal_from = sigma, rho_max, anneal_from
        self.number, self.total = 0, len(rates)

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        start = self.anneal_from * self.total
        past = (self.number - start) / (self.total - start) if self.number > start else 0.0
        self.number += 1
        loss, g = problem.gradient(w)
        rho = min(self.sigma * math.cos(math.pi * past / 2) ** 2 / g.norm().item(), self.rho_max)
        return Handed(problem.gradient(w + rho * g / g.norm())[1], None, loss)
