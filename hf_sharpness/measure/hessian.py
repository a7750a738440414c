"""The largest eigenvalues of the Hessian and its trace, from products with vectors by central differences of gradients.

H v = (grad L(w + e v) - grad L(w - e v)) / 2e needs no double backward, so it runs with every attention kernel and
wherever gradients do. The difference is exact to e^2 and to the rounding of a gradient over e; e ||v|| is by default
a fifth of the cube root of the type's precision: 1e-3 in float32, 1e-6 in float64. Along the sharpest direction of a
trained network the gradient bends over less than that root.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import vectors
from ..vectors import Vector
from .surface import Surface

DENSE = 24
"""Up to so many weights the whole Hessian is made, a column at a time: Lanczos wants more."""


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """The largest eigenvalues.

    Args:
        values: from the largest on.
        residuals: || H v - lambda v || of each; an eigenvalue is as near.
        products: products with vectors that it took, two gradients each.
    """

    values: list[float]
    residuals: list[float]
    products: int


@dataclasses.dataclass(frozen=True)
class Trace:
    """An estimate of the trace (Hutchinson).

    Args:
        value: the mean over the probes.
        standard_error: of the mean; None for one probe.
        probes: products with vectors of random signs.
    """

    value: float
    standard_error: float | None
    probes: int


class Hessian:
    """Products of the Hessian with vectors.

    Args:
        surface: the loss, entered.
        step: e ||v||, the length of the displacement either side. Default None: by the type of the weights.
    """

    def __init__(self, surface: Surface, step: float | None = None) -> None:
        self.surface = surface
        self.step = step or torch.finfo(surface.saved[0].dtype).eps ** (1 / 3) / 5
        self.products = 0

    def product(self, vector: Vector) -> Vector:
        """H v."""
        self.products += 1
        length = self.surface.norm(vector)
        if not length:
            return [torch.zeros_like(t) for t in vector]
        e = self.step / length
        _, ahead = self.surface.gradient((e, vector))
        _, behind = self.surface.gradient((-e, vector))
        vectors.add_(ahead, behind, -1.0)
        vectors.scale_(ahead, 1.0 / (2.0 * e))
        return ahead

    def eigenvalues(self, count: int = 3, tolerance: float = 1e-3, seed: int = 0) -> Eigenvalues:
        """The largest eigenvalues by SciPy's Lanczos iteration, which keeps some twenty vectors of all weights.

        Args:
            count: how many.
            tolerance: relative, of an eigenvalue.
            seed: draws the vector it begins with.
        """
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        before = self.products
        size = whole(self.surface, self.surface.saved).numel()
        matvec = lambda v: whole(self.surface, self.product(parts(self.surface, torch.from_numpy(v)))).numpy()  # noqa: E731
        dtype = np.float64 if self.surface.saved[0].dtype == torch.float64 else np.float32
        if size <= max(DENSE, 2 * count + 1):
            columns = np.stack([matvec(column.copy()) for column in np.eye(size, dtype=dtype)])
            values, axes = np.linalg.eigh((columns + columns.T) / 2)
        else:
            start = whole(self.surface, self.surface.normal(seed)).numpy()
            operator = LinearOperator((size, size), matvec=matvec, dtype=dtype)
            try:
                values, axes = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance)
            except ArpackNoConvergence as error:  # what has converged
                values, axes = error.eigenvalues, error.eigenvectors
        order = np.argsort(values)[::-1][:count]
        residuals = [
            float(np.linalg.norm(matvec(np.ascontiguousarray(axes[:, i])) - values[i] * axes[:, i])) for i in order
        ]
        return Eigenvalues([float(values[i]) for i in order], residuals, self.products - before)

    def trace(self, probes: int = 10, seed: int = 0) -> Trace:
        """The trace, estimated with vectors of random signs.

        Args:
            probes: how many vectors.
            seed: draws them.
        """
        found = []
        for number in range(probes):
            signs = [t.sign() for t in self.surface.normal(seed + 1 + number)]
            found.append(self.surface.dot(signs, self.product(signs)))
        error = float(np.std(found, ddof=1)) / math.sqrt(probes) if probes > 1 else None
        return Trace(float(np.mean(found)), error, probes)


def whole(surface: Surface, vector: Vector) -> Tensor:
    """A vector as one tensor with all weights' entries, on the CPU; every rank gets it."""
    pieces: list[Any] = []
    for piece, owner in zip(vector, surface.owners, strict=True):
        full: Any = vectors.shaped_like(piece, owner) if vectors.is_sharded(owner) else piece
        pieces.append((full.full_tensor() if vectors.is_sharded(owner) else full).reshape(-1).cpu())
    return torch.cat(pieces)


def parts(surface: Surface, flat: Tensor) -> Vector:
    """The opposite: this rank's vector of a tensor with all entries."""
    vector, start = [], 0
    for piece, owner in zip(surface.saved, surface.owners, strict=True):
        sharded: Any = owner if vectors.is_sharded(owner) else None
        shape = piece.shape if sharded is None else sharded.shape
        entries = flat[start : start + shape.numel()].reshape(shape).to(piece)
        start += shape.numel()
        vector.append(entries if sharded is None else vectors.local([vectors.shard_of(entries, sharded)])[0])
    return vector
