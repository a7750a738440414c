"""Critical sharpness 2/eta_c (arXiv 2601.16979): how far the optimizer's own update may go before the loss rises.

eta_c is the least eta > 0 with L(w - eta u) > L(w). On a quadratic it is 2 <g, u> / <u, H u>, so that along the
gradient 2/eta_c is the curvature along it, at most the largest eigenvalue of the Hessian.
"""

from __future__ import annotations

import dataclasses
import math

from ..vectors import Vector
from .batches import Batches
from .surface import Surface

MOST_PASSES = 60


@dataclasses.dataclass(frozen=True)
class Critical:
    """A critical sharpness.

    Args:
        sharpness: 2/eta_c; None where none was found, 0 where the loss never rises.
        step: eta_c.
        passes: forward passes that the search took.
        note: what is to be said of it; empty in the ordinary case.
    """

    sharpness: float | None
    step: float | None
    passes: int
    note: str = ""


def critical_sharpness(
    surface: Surface,
    loss: float,
    gradient: Vector,
    update: Vector,
    guess: float | None = None,
    tolerance: float = 0.01,
    batches: Batches | None = None,
) -> Critical:
    """Search eta_c with forward passes only.

    (L(w - eta u) - L(w)) / eta begins at -<g, u> and is linear in eta on a quadratic. So its zero is looked for by the
    secant through the last points, kept within a bracket, and by doubling as long as there is no bracket.

    Args:
        surface: the loss.
        loss: L(w).
        gradient: of it.
        update: u, what the optimizer would subtract from the weights at learning rate 1.
        guess: eta to begin with, such as the last one found. Default None: where the linear loss would be -L(w).
        tolerance: of eta_c, relative.
        batches: the examples of the loss. Default None: the surface's.
    """
    slope = surface.dot(gradient, update)
    if not math.isfinite(slope) or not math.isfinite(loss):
        return Critical(None, None, 0, "loss or gradient is not finite")
    if slope <= 0.0:
        return Critical(None, 0.0, 0, "the loss rises along the update from the start")
    eta = guess or 2.0 * abs(loss) / slope or 1.0 / slope
    below, above = (0.0, -slope), None  # eta, and the rate there
    same_side = 0
    for passes in range(1, MOST_PASSES + 1):
        rate = (surface.loss((-eta, update), batches=batches) - loss) / eta
        if rate <= 0.0:
            linear = _zero(below, (eta, rate))
            below, same_side = (eta, rate), min(same_side, 0) - 1
            if above is not None and same_side < -1:  # the other end has stayed: see the Illinois method
                above = (above[0], above[1] / 2.0)
        else:  # where the loss is not finite it has risen
            linear = None
            above, same_side = (eta, rate), max(same_side, 0) + 1
            if same_side > 1:
                below = (below[0], below[1] / 2.0)
        nearer = linear if above is None else _zero(below, above)
        narrow = above is not None and 0.0 < above[0] <= below[0] * (1.0 + tolerance)
        if abs(rate) <= tolerance * slope or narrow:
            step = nearer or eta
            return Critical(2.0 / step, step, passes)
        if above is None:
            eta = min(max(nearer or 4.0 * eta, 1.25 * eta), 8.0 * eta)
        else:
            halfway = math.sqrt(below[0] * above[0]) if below[0] else above[0] / 8.0
            margin = 0.01 * (above[0] - below[0])
            eta = min(max(nearer or halfway, below[0] + margin), above[0] - margin)
    if above is None:
        return Critical(0.0, None, MOST_PASSES, "the loss does not rise, however far the update goes")
    return Critical(2.0 / above[0], above[0], MOST_PASSES, "the search did not settle")


def _zero(a: tuple[float, float], b: tuple[float, float]) -> float | None:
    """Where the line through two points is zero; None where it is not beyond 0, or a point is not finite."""
    if not (math.isfinite(b[1]) and math.isfinite(a[1])) or b[1] <= a[1]:
        return None
    place = a[0] - a[1] * (b[0] - a[0]) / (b[1] - a[1])
    return place if place > 0.0 else None
