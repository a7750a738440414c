"""Searches for XSAM's alpha* among the points of a grid: all of them, or a few that close in on the highest loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

MOST = 8
"""Probes of the coarse search."""

Losses = Callable[[list[int]], list[float]]
"""The losses at points of the grid, given by their numbers."""


def rounding_of(loss: float, dtype: torch.dtype) -> float:
    """By how much two equal losses of one batch may differ.

    In 16 bits it is the spacing of the numbers; in 32 and 64 bits, in which many examples' losses are added up in one
    order or another, 16 times that.
    """
    epsilon = torch.finfo(dtype).eps
    return abs(loss) * epsilon * (16 if epsilon < 1e-6 else 1)


def chosen(losses: Mapping[int, float], dtype: torch.dtype) -> int | None:
    """The first point of the highest finite loss, those within rounding being as high; None if none is finite."""
    finite = {index: loss for index, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return None
    highest = max(finite.values())
    tied = highest - rounding_of(highest, dtype)
    return min(index for index, loss in finite.items() if loss >= tied)


def grid(points: int, losses_at: Losses) -> dict[int, float]:
    """Probe all points."""
    return dict(enumerate(losses_at(list(range(points)))))


def coarse(points: int, losses_at: Losses) -> dict[int, float]:
    """Probe at most MOST: five that are spread evenly, then beside the highest, where a parabola has its vertex.

    It ends once the highest has been probed on both sides. Curves of one hill are searched to its top, where they are
    smooth enough for a parabola.
    """
    if points <= MOST:
        return grid(points, losses_at)
    spread = [round((points - 1) * i / 4) for i in range(5)]
    losses = dict(zip(spread, losses_at(spread), strict=True))
    while len(losses) < MOST:
        index = _next(points, losses)
        if index is None:
            break
        (losses[index],) = losses_at([index])
    return losses


def _next(points: int, losses: Mapping[int, float]) -> int | None:
    """The point to probe next; None if both neighbours of the highest are known."""
    height = {index: loss if math.isfinite(loss) else -math.inf for index, loss in losses.items()}
    top = min(index for index, value in height.items() if value == max(height.values()))
    below = max((index for index in losses if index < top), default=None)
    above = min((index for index in losses if index > top), default=None)
    between = range((below if below is not None else top) + 1, above if above is not None else points)
    free = [index for index in between if index not in losses]
    if not free:
        return None
    if below is None or above is None:
        return free[0] if below is None else free[-1]
    vertex = _vertex(height, below, top, above)
    if vertex is None:  # losses that are not finite, or equal: halve the wider side
        left, right = [i for i in free if i < top], [i for i in free if i > top]
        wider = left if len(left) > len(right) else right
        return wider[len(wider) // 2]
    return min(free, key=lambda index: (abs(index - vertex), index))


def _vertex(height: Mapping[int, float], below: int, top: int, above: int) -> float | None:
    """Where the parabola through three points is highest; None where there is none."""
    left, right = (height[top] - height[below]) / (top - below), (height[above] - height[top]) / (above - top)
    bend = (right - left) / (above - below)
    if not (math.isfinite(bend) and bend < 0):
        return None
    return (below + top) / 2 - left / (2 * bend)


SEARCHES: dict[str, Callable[[int, Losses], dict[int, float]]] = {"coarse": coarse, "grid": grid}
