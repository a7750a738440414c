"""A method that is on in some steps only, and whose rho changes from step to step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from .methods import Handed, Plain
from .run import Problem


def sharp_steps(total: int, start: str = "0", stop: str = "1") -> list[int]:
    """The steps k of `total` with start <= k/total < stop, in exact arithmetic."""
    return [k for k in range(total) if Fraction(start) <= Fraction(k, total) < Fraction(stop)]


def linear_ramp(sharp: Collection[int]) -> Callable[[int], float]:
    """Up in equal steps over the first tenth of the sharp steps, rounded up."""
    ramp = -(-len(sharp) // 10)
    places = {step: place for place, step in enumerate(sorted(sharp), start=1)}
    return lambda step: min(1.0, places[step] / ramp)


@dataclass
class InSteps:
    """`method` in the steps `sharp`, its rho times `factor(step)`; no method in the others.

    An epoch's search for alpha is made in the first sharp step of the epoch.
    """

    method: Any
    sharp: Collection[int]
    factor: Callable[[int], float] = lambda step: 1.0

    def __post_init__(self) -> None:
        self.step = 0
        self.search = False
        self.alpha_star = None

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        step, self.step = self.step, self.step + 1
        self.search = self.search or refresh or step == min(self.sharp, default=None)
        if step not in self.sharp:
            return Plain()(problem, w, refresh)
        factor, reach = self.factor(step), getattr(self.method, "rho_max", None)
        lengths = {"rho": factor * self.method.rho} | ({} if reach is None else {"rho_max": factor * reach})
        method = replace(self.method, **lengths)
        if self.alpha_star is not None:
            method.alpha_star = self.alpha_star
        handed = method(problem, w, self.search)
        self.alpha_star, self.search = getattr(method, "alpha_star", None), False
        return handed
