"""The loss in a ball around the weights: where SAM and ASAM look, and the worst that multi-step ascent finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from .. import vectors
from ..vectors import Vector
from .surface import Surface


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """What one ascent of length rho along the gradient meets (arXiv 2010.01412; adaptive: arXiv 2102.11600).

    Args:
        rho: the length, in ASAM's metric where adaptive.
        loss: L(w + delta).
        sharpness: L(w + delta) - L(w).
        linear: what the gradient alone predicts for it: rho ||g||, with ASAM rho || |w| g ||.
    """

    rho: float
    loss: float
    sharpness: float
    linear: float


def sharpness(
    surface: Surface, loss: float, gradient: Vector, rhos: Iterable[float], adaptive: bool = False
) -> list[Sharpness]:
    """The sharpness at several rho, one forward pass each.

    Args:
        surface: the loss.
        loss: L(w).
        gradient: of it.
        rhos: the lengths.
        adaptive: whether the ball is ASAM's.
    """
    steepness = surface.norm(gradient)
    if adaptive:
        scaled = vectors.clone(gradient)
        vectors.multiply_(scaled, surface.saved)
        steepness = surface.norm(scaled)
    found = []
    for rho in rhos:
        perturbed = surface.loss((1.0, surface.ascent(gradient, rho, adaptive)))
        found.append(Sharpness(rho, perturbed, perturbed - loss, rho * steepness))
    return found


@dataclasses.dataclass(frozen=True)
class Worst:
    """The highest loss that was found within rho.

    Args:
        rho: the radius.
        loss: the loss there.
        sharpness: how much higher than L(w) it is.
        displacement: where it is.
    """

    rho: float
    loss: float
    sharpness: float
    displacement: Vector


def worst(
    surface: Surface,
    loss: float,
    gradient: Vector,
    rho: float,
    steps: int = 10,
    start: Vector | None = None,
) -> Worst:
    """Climb within the ball of radius rho: from SAM's point on, projected ascent whose step is halved where it fails.

    Args:
        surface: the loss.
        loss: L(w).
        gradient: of it.
        rho: the radius.
        steps: further ascents, one forward and backward pass each.
        start: the direction of the first point. Default None: the gradient.
    """
    point = surface.ascent(gradient if start is None else start, rho)
    best = Worst(rho, loss, 0.0, [t.zero_() for t in vectors.clone(point)])
    step, slope = rho, gradient
    for _ in range(steps + 1):
        found, slope_there = surface.gradient((1.0, point))
        if found > best.loss:
            best, slope = Worst(rho, found, found - loss, point), slope_there
        else:
            step /= 2.0
        point = vectors.clone(best.displacement)
        vectors.add_(point, surface.ascent(slope, step))
        length = surface.norm(point)
        if length > rho:
            vectors.scale_(point, rho / length)
    return best
