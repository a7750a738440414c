"""From a range test to the rho at which steps are sharpness-aware, and why not beyond; other rules' candidates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..methods import METHODS
from ..methods.range_form import RangeForm

LEAST_TURN = 0.25
"""Below it a method's gradient differs from the plain one by less than a quarter of that: nearly the base's step."""
LEAST_COSINE = 0.3
"""Below it (73 degrees) the gradient up the slope no longer says where the loss at the weights falls."""
MOST_RISE = 1.0
"""Above it the perturbed loss is more than twice the loss."""
HILL, PEAK = 0.05, 0.5
"""A rise that was above the first share of the loss and is below the second share of its highest: over the hill."""
SPREAD = 5.0
"""A batch whose upper end lies farther than this factor from the median disagrees with it."""
DISAGREE = 0.3
"""Where more than this share of the batches does, they agree on no range."""
END = "the grid ends"
"""Stops every test that nothing else stops: no reason to end a range."""


UP_THE_SLOPE = RangeForm("the gradient up the slope")
"""What is the same for all methods: the loss rho up the slope, and the gradient there."""


def forms() -> tuple[RangeForm, ...]:
    """How the registered methods are to be read, in the order of their registration."""
    return tuple(form for cls in METHODS.values() for form in cls.range_forms)


@dataclasses.dataclass(frozen=True)
class Curve:
    """What happens at every radius, on one batch: arrays of one length.

    Args:
        rho: the radii.
        rise: sharpness over loss, at the method's reach.
        cosine: of the gradients at the weights and up the slope.
        turn: how far the method's gradient lies from the plain one, over that one's norm.
    """

    rho: np.ndarray
    rise: np.ndarray
    cosine: np.ndarray
    turn: np.ndarray


def curve(look: dict[str, Any], form: RangeForm) -> Curve:
    """A form's curve on a measured batch."""
    rho = np.array([point["rho"] for point in look["radii"]])
    loss = np.array([point["loss"] for point in look["radii"]], dtype=float)
    cosine = np.clip(np.array([point["cosine"] for point in look["radii"]], dtype=float), -1, 1)
    size = np.array([point["gradient_norm"] for point in look["radii"]], dtype=float) / max(
        look["gradient_norm"], 1e-30
    )
    rise = (loss - look["loss"]) / max(abs(look["loss"]), 1e-30)
    if form.reach != 1.0:  # beyond the grid the last one known
        rise = np.interp(np.log(form.reach * rho), np.log(rho), rise)
    # ||g_s - g|| in units of ||g||, from the two norms and the cosine.
    apart = np.hypot(size * cosine - 1, size * np.sqrt(np.maximum(0.0, 1 - cosine**2)))
    return Curve(rho, rise, cosine, form.weight * apart)


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a method's steps are sharpness-aware, or nowhere.

    Args:
        form: the method.
        adaptive: whether rho is ASAM's.
        low: the smallest rho with an effect; None: there is none.
        high: the largest before the test stops; None.
        low_reason: what is reached at `low`.
        high_reason: what happened above `high`.
        why_not: why there is no range; empty where there is one.
    """

    form: str
    adaptive: bool
    low: float | None
    high: float | None
    low_reason: str
    high_reason: str
    why_not: str = ""

    @property
    def is_one(self) -> bool:
        """Whether there is a range."""
        return not self.why_not


def ends(line: Curve) -> tuple[float | None, float | None, str]:
    """The smallest rho with an effect, the largest before the first reason to stop going up, and that reason."""
    effect = line.rho[line.turn >= LEAST_TURN]
    low = float(effect[0]) if len(effect) else None
    highest = -math.inf
    high: float | None = None
    for rho, rise, cosine in zip(line.rho, line.rise, line.cosine, strict=True):
        if not (math.isfinite(rise) and math.isfinite(cosine)):
            return low, high, "the loss or its gradient is not finite"
        if rise > MOST_RISE:
            return low, high, "the perturbed loss is more than twice the loss"
        if cosine < LEAST_COSINE:
            return low, high, f"the gradient has turned away (cosine below {LEAST_COSINE:g})"
        highest = max(highest, rise)
        if highest > HILL and rise < PEAK * highest:
            return low, high, "the loss falls again: the perturbation has passed over the hill"
        high = float(rho)
    return low, high, END


def range_of(looks: Sequence[dict[str, Any]], form: RangeForm, adaptive: bool) -> Range:
    """The range of a method, from the batches measured after the warm-up: the median of their ends.

    Args:
        looks: the looks of one metric and time.
        form: the method.
        adaptive: the metric.
    """
    found = [ends(curve(look, form)) for look in looks]
    lows = [low for low, _, _ in found if low is not None]
    highs = [high for _, high, _ in found if high is not None]
    reasons = [reason for _, _, reason in found]
    high_reason = max(set(reasons), key=reasons.count) if reasons else ""
    low_reason = f"the method's gradient differs from the plain one by {100 * LEAST_TURN:g} %"
    low = float(np.median(lows)) if lows else None
    high = float(np.median(highs)) if highs else None
    number, effect, why_not = len(found), f"{100 * LEAST_TURN:g} %", ""
    if len(lows) < number:
        why_not = f"on {number - len(lows)} of {number} batches no rho changes the step by {effect}"
    elif len(highs) < number or low is None or high is None:
        why_not = f"on {number - len(highs)} of {number} batches even the smallest rho is too far: {high_reason}"
    elif sum(not high / SPREAD <= one <= high * SPREAD for one in highs) > DISAGREE * number:
        why_not = f"the batches disagree: their upper ends lie between {min(highs):.2g} and {max(highs):.2g}"
    elif high_reason == END:
        why_not = f"nothing stops the test up to rho {high:.2g}: measure on with a larger --highest"
    elif low >= high:
        why_not = f"{high_reason} (above rho {high:.2g}) before the step changes by {effect} (at {low:.2g})"
    return Range(form.name, adaptive, low, high, low_reason, high_reason, why_not)


def crossing(rho: np.ndarray, values: np.ndarray, wanted: float) -> float | None:
    """Where values first rise through the wanted one, between two radii by straight lines over log rho."""
    above = np.flatnonzero(values >= wanted)
    if not len(above):
        return None
    index = int(above[0])
    if index == 0:
        return float(rho[0])
    y0, y1 = values[index - 1], values[index]
    if not (math.isfinite(y0) and math.isfinite(y1)):
        return float(rho[index])
    share = (wanted - y0) / (y1 - y0)
    return float(np.exp(np.log(rho[index - 1]) + share * (np.log(rho[index]) - np.log(rho[index - 1]))))


def candidates(looks: Sequence[dict[str, Any]], sigma: float = 0.1, rho_max: float = 0.2) -> list[dict[str, Any]]:
    """What other rules would choose: the median over batches of one metric, none of them proven.

    Args:
        looks: the looks of one metric and time.
        sigma: LE-SAM's budget, in units of the loss.
        rho_max: LE-SAM's longest step.

    Returns:
        Rows of `rule`, `rho` (None where no radius of the grid has it) and `batches` that had one.
    """
    rows: list[dict[str, Any]] = []

    def row(rule: str, values: list[float | None]) -> None:
        had = [value for value in values if value is not None and math.isfinite(value)]
        enough = 2 * len(had) > len(values)
        rows.append({"rule": rule, "rho": float(np.median(had)) if enough else None, "batches": len(had)})

    lines = [curve(look, UP_THE_SLOPE) for look in looks]
    for share in (0.05, 0.25, 1.0):
        row(f"sharpness = {share:g} x loss", [crossing(line.rho, line.rise, share) for line in lines])
    for cosine in (0.9, 0.7, 0.5):
        row(f"cosine of g and g_s = {cosine:g}", [crossing(line.rho, -line.cosine, -cosine) for line in lines])
    for share in (0.001, 0.01):
        row(f"||delta|| = {share:g} x ||w||", [_ratio(share * look["weight_norm"], look["length"]) for look in looks])
    for tau in (0.02, 0.05, 0.1):
        row(f"loss budget, tau = {tau:g}: tau L / slope", [_ratio(tau * look["loss"], look["slope"]) for look in looks])
    row(
        f"LE-SAM (arXiv 2605.10183): min(sigma / slope, rho_max), sigma {sigma:g}, rho_max {rho_max:g}",
        [min(_ratio(sigma, look["slope"]), rho_max) for look in looks],
    )
    return rows


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf
