"""Losses along lines and on planes through the weights: the numbers behind the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from .. import vectors
from ..vectors import Vector
from .ball import worst
from .surface import Surface


def filter_normalised(surface: Surface, seed: int) -> Vector:
    """A random direction in which every filter is as long as that of the weights (arXiv 1712.09913).

    A filter is a row of a weight with two dimensions or more; biases and the weights of norms do not move.
    """
    direction = surface.normal(seed)
    for entry, weight in zip(direction, surface.saved, strict=True):
        if weight.ndim < 2:
            entry.zero_()
            continue
        rows, own = entry.flatten(1), weight.flatten(1)
        lengths = rows.norm(dim=1, keepdim=True)
        rows.mul_(torch.where(lengths > 0, own.norm(dim=1, keepdim=True) / lengths, torch.zeros_like(lengths)))
    return direction


def line(surface: Surface, direction: Vector, distances: Sequence[float]) -> list[float]:
    """L(w + t d) for each distance t."""
    return [surface.loss((float(t), direction)) for t in distances]


def plane(surface: Surface, across: Vector, up: Vector, xs: Sequence[float], ys: Sequence[float]) -> list[list[float]]:
    """L(w + x across + y up), a row for each y."""
    return [[surface.loss((float(x), across), (float(y), up)) for x in xs] for y in ys]


@dataclasses.dataclass(frozen=True)
class SamPlane:
    """The plane of g_0, the gradient at w, and g_1, the one at w + rho g_0/||g_0|| (arXiv 2603.10048, figure 1).

    Its axes are the direction of g_0, and the part of g_1 that is orthogonal to it.

    Args:
        rho: how far g_1 is from w.
        rho_max: how far XSAM looks.
        angle: between g_0 and g_1, in degrees.
        xs: coordinates along g_0.
        ys: coordinates along the other axis.
        losses: on the grid, a row for each y.
        g1: the direction of g_1 in the plane.
        alpha: XSAM's alpha*, of the grid 0, .1, ... 2.
        v: XSAM's direction v(alpha*) in the plane.
        radii: at which the next two are.
        along_g0: L(w + r g_0/||g_0||).
        along_g1: L(w + r g_1/||g_1||).
        overtakes: the least of the radii from which on the loss along g_1 is the higher one; None: of none.
    """

    rho: float
    rho_max: float
    angle: float
    xs: list[float]
    ys: list[float]
    losses: list[list[float]]
    g1: tuple[float, float]
    alpha: float
    v: tuple[float, float]
    radii: list[float]
    along_g0: list[float]
    along_g1: list[float]
    overtakes: float | None


def sam_plane(surface: Surface, rho: float, resolution: int = 21) -> SamPlane:
    """Look at the plane of g_0 and g_1 with rho_max = 2 rho.

    Args:
        surface: the loss, entered.
        rho: the length of SAM's ascent.
        resolution: points along each side of the grid, and radii.
    """
    rho_max = 2.0 * rho
    _, g0 = surface.gradient()
    e0 = surface.ascent(g0, 1.0)
    _, g1 = surface.gradient((rho, e0))
    d1 = surface.ascent(g1, 1.0)
    cosine = surface.dot(d1, e0)
    e1 = vectors.clone(d1)
    vectors.add_(e1, e0, -cosine)
    sine = surface.norm(e1)
    vectors.scale_(e1, 1.0 / sine if sine > 1e-9 else 0.0)
    psi = float(np.arctan2(sine, cosine))
    best_alpha, best, v = 0.0, -np.inf, (cosine, sine)
    for alpha in np.arange(21) / 10:
        at = float(np.cos(alpha * psi)), float(np.sin(alpha * psi))
        found = surface.loss((rho_max * at[0], e0), (rho_max * at[1], e1))
        if np.isfinite(found) and found > best:
            best_alpha, best, v = float(alpha), found, at
    xs = np.linspace(-1.25 * rho_max, 1.25 * rho_max, resolution).tolist()
    radii = np.linspace(0.0, 1.25 * rho_max, resolution).tolist()
    along_g0, along_g1 = line(surface, e0, radii), line(surface, d1, radii)
    higher = np.array(along_g1[1:]) > np.array(along_g0[1:])
    below = np.flatnonzero(~higher)
    first = 0 if not len(below) else below[-1] + 1
    return SamPlane(
        rho,
        rho_max,
        float(np.degrees(psi)),
        xs,
        xs,
        plane(surface, e0, e1, xs, xs),
        (cosine, sine),
        best_alpha,
        v,
        radii,
        along_g0,
        along_g1,
        radii[1:][first] if first < len(higher) else None,
    )


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How well k steps of ascent find the maximum of the neighbourhood.

    Args:
        rho: the radius.
        maximum: the highest loss found within it.
        starts: restarts of the search.
        spread: the losses that they ended at.
        steps: k, from 0 on.
        of_displacement: cosine of w_k - w_0 with the maximum; None for k = 0.
        of_gradient: cosine of g_k, which SAM steps along, with it.
    """

    rho: float
    maximum: float
    starts: int
    spread: list[float]
    steps: list[int]
    of_displacement: list[float | None]
    of_gradient: list[float]


def alignment(
    surface: Surface, rho: float, most_steps: int = 8, starts: int = 20, ascents: int = 15, seed: int = 0
) -> Alignment:
    """Compare SAM's k-step ascents (rho/k each) with the best of several projected ascents.

    Args:
        surface: the loss, entered.
        rho: the radius.
        most_steps: the largest k.
        starts: restarts: from the gradient, from against it, and from random directions.
        ascents: steps of each.
        seed: draws the directions.
    """
    loss, g0 = surface.gradient()
    best, spread = None, []
    for number in range(starts):
        if number < 2:
            direction = [t * (1.0 - 2.0 * number) for t in g0]
        else:
            direction = surface.normal(seed + number)
        found = worst(surface, loss, g0, rho, ascents, start=direction)
        spread.append(found.loss)
        if best is None or found.loss > best.loss:
            best = found
    assert best is not None
    displacements: list[float | None] = [None]
    gradients = [surface.cosine(g0, best.displacement)]
    for k in range(1, most_steps + 1):
        moved, slope = [torch.zeros_like(t) for t in g0], g0
        for _ in range(k):
            vectors.add_(moved, surface.ascent(slope, rho / k))
            _, slope = surface.gradient((1.0, moved))
        displacements.append(surface.cosine(moved, best.displacement))
        gradients.append(surface.cosine(slope, best.displacement))
    return Alignment(rho, best.loss, starts, spread, list(range(most_steps + 1)), displacements, gradients)
