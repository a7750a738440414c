"""What takes many passes, and is measured when it is asked for: the Hessian, and the numbers of the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..vectors import Vector
from .batches import Batches
from .hessian import Hessian
from .lines import alignment, filter_normalised, line, plane, sam_plane
from .surface import Surface

PICTURES = ("line", "surface", "sam", "cosine")
"""The pictures of one model; `path`, to another one, is the fifth."""


def hessian(surface: Surface, count: int, probes: int, seed: int) -> dict[str, Any]:
    """The largest eigenvalues and the trace.

    Args:
        surface: the loss, entered.
        count: how many eigenvalues.
        probes: random vectors for the trace.
        seed: draws them.
    """
    products = Hessian(surface)
    eigenvalues, trace = products.eigenvalues(count, seed=seed), products.trace(probes, seed)
    return {
        "eigenvalues": eigenvalues.values,
        "residuals": eigenvalues.residuals,
        "trace": dataclasses.asdict(trace),
        "step": products.step,
        "products": products.products,
    }


def pictures(
    surface: Surface,
    names: tuple[str, ...],
    rho: float,
    resolution: int,
    seed: int,
    other: tuple[str, Vector] | None = None,
    splits: Mapping[str, Batches] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the numbers of each picture, as soon as they are there.

    Args:
        surface: the loss, entered.
        names: some of `PICTURES`.
        rho: of the pictures `sam` and `cosine`.
        resolution: points along an axis.
        seed: draws directions.
        other: another model's name and its difference to this one, for `path`. Default None: no such picture.
        splits: on which examples the loss on the way is taken, by name. Default None: on the surface's.
    """
    ticks = np.linspace(-1.0, 1.0, resolution).tolist()
    first = filter_normalised(surface, seed + 1)
    for name in names:
        if name == "line":
            directions = [first, *(filter_normalised(surface, seed + number) for number in (2, 3))]
            yield name, {"distances": ticks, "losses": [line(surface, d, ticks) for d in directions]}
        elif name == "surface":
            second = filter_normalised(surface, seed + 2)
            yield name, {"xs": ticks, "ys": ticks, "losses": plane(surface, first, second, ticks, ticks)}
        elif name == "sam":
            yield name, dataclasses.asdict(sam_plane(surface, rho, resolution))
        elif name == "cosine":
            yield name, dataclasses.asdict(alignment(surface, rho, seed=seed))
    if other is not None:
        positions = np.linspace(-0.25, 1.25, resolution).tolist()
        losses = {
            split: [surface.loss((t, other[1]), batches=batches) for t in positions]
            for split, batches in (splits or {"train": surface.batches}).items()
        }
        yield "path", {"to": other[0], "positions": positions, "losses": losses}
