"""Arithmetic on lists of tensors seen as one long vector.

A model's gradient, a perturbation and the weights themselves are lists of tensors of equal shapes. Everything here
works on such lists with the fused ``torch._foreach_*`` kernels: a handful of launches whatever the number of tensors.

Sharded tensors (``DTensor``: FSDP2, tensor parallel) are handled through their local shards: element-wise work needs no
communication, and :func:`norm` and :func:`dot` sum over the ranks that hold different shards.

``torch._foreach_*`` carries a leading underscore but is what ``torch.optim`` and ``torch.nn.utils`` are built on; it is
used in this module only, and ``tests/test_vectors.py`` fails if a function moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .shards import DTensor as DTensor
from .shards import Part as Part
from .shards import Vector as Vector
from .shards import is_sharded as is_sharded
from .shards import local as local
from .shards import placement as placement
from .shards import shaped_like as shaped_like
from .shards import shard_of as shard_of


def gradients(params: Iterable[Tensor]) -> Vector:
    """p.grad of parameters that all have one, local as ``local`` has it."""
    return local([cast(Tensor, p.grad) for p in params])


def clone(vector: Vector) -> Vector:
    """A copy in storage of its own."""
    copies = [torch.empty_like(t) for t in vector]
    copy_(copies, vector)
    return copies


def copy_(vector: Vector, source: Vector) -> None:
    """vector <- source, exactly."""
    if vector:
        torch._foreach_copy_(vector, source)


def add_(vector: Vector, other: Vector, factor: float = 1.0) -> None:
    """vector <- vector + factor * other."""
    if vector:
        torch._foreach_add_(vector, other, alpha=factor)


def multiply_(vector: Vector, other: Vector) -> None:
    """vector <- vector * other, element by element."""
    if vector:
        torch._foreach_mul_(vector, other)


def scale_(vector: Vector, factor: float | Tensor) -> None:
    """vector <- factor * vector. A 0-dim tensor as factor stays on its device: no host synchronisation."""
    if not vector:
        return
    if not isinstance(factor, Tensor):
        torch._foreach_mul_(vector, factor)
        return
    for device, group in by_device(vector).items():
        torch._foreach_mul_(group, factor.to(device, non_blocking=True))


def divide_by_roots_(vector: Vector, squares: Vector, scales: Sequence[float | Tensor], eps: float) -> None:
    """vector <- vector / (sqrt(squares) / scale + eps), element by element, with a scale for each tensor.

    Args:
        vector: local tensors.
        squares: tensors of the same shapes on the same devices; a copy of them is made.
        scales: numbers, or 0-dim tensors on those devices, for which the host does not wait.
        eps: added to every root.
    """
    if vector:
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, cast(Any, scales))
        torch._foreach_add_(roots, eps)
        torch._foreach_div_(vector, roots)


def by_device(vector: Vector) -> dict[torch.device, Vector]:
    """The tensors grouped by the device that holds them (one group unless the model is spread over devices)."""
    groups: dict[torch.device, Vector] = {}
    for tensor in vector:
        groups.setdefault(tensor.device, []).append(tensor)
    return groups


def norm(vector: Vector, like: Sequence[Tensor] | None = None) -> Tensor:
    """One global L2 norm over all tensors, accumulated in fp32 (fp64 for float64 tensors), as a 0-dim tensor.

    In fp32 it is infinite from 1.8e19 on, where the squares overflow: see :func:`norm_of_large`.

    Args:
        vector: local tensors, any shapes, devices and dtypes.
        like: the tensors whose shards ``vector`` holds. Where one is a ``DTensor``, the squares are summed over the
            mesh dimensions that shard it, so that every rank gets the norm of the whole; where it is a ``Part``, over
            the ranks of its group.
    """
    return _whole_norm(vector, like, norms)


def norm_of_large(vector: Vector, like: Sequence[Tensor] | None = None) -> Tensor:
    """The same for a vector of finite elements whose squares overflow.

    Takes a copy of one tensor at a time, so it is for the rare case that :func:`norm` is not finite.
    """
    scale = 2.0**-80  # a power of two, so that nothing is rounded

    def scaled(tensors: Vector) -> Vector:
        return norms([norms([tensor * scale])[0] for tensor in tensors])  # again, for one type

    return _whole_norm(vector, like, scaled) / scale


def _whole_norm(vector: Vector, like: Sequence[Tensor] | None, norms_of: Callable[[Vector], Vector]) -> Tensor:
    if not vector:
        return torch.zeros(())
    groups: dict[object, Vector] = {}
    for tensor, owner in zip(vector, like if like is not None else vector, strict=True):
        groups.setdefault(_spread(owner), []).append(tensor)
    device = vector[0].device
    totals = []
    for spread, tensors in groups.items():
        total = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms_of(tensors)]))
        totals.append(total if spread is None else _reduced_over_ranks(total, _groups_of(spread)))
    if len(totals) == 1:
        return totals[0]
    widest = torch.float64 if any(t.dtype == torch.float64 for t in totals) else torch.float32
    return torch.linalg.vector_norm(torch.stack([t.to(widest) for t in totals]))


def norms(tensors: Vector) -> Vector:
    """The norm of each tensor, all in the widest of their accumulation types."""
    dtypes = {t.dtype for t in tensors}
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    if any(_is_long(t) for t in tensors):
        pieces = [list(t.reshape(-1).split(_PIECE)) if _is_long(t) else [t] for t in tensors]
        return [torch.linalg.vector_norm(torch.stack(norms(parts))).to(wide) for parts in pieces]
    if dtypes == {wide}:
        return list(torch._foreach_norm(tensors))
    return [n.to(wide) for n in torch._foreach_norm(tensors, 2, dtype=wide)]


def _is_long(tensor: Tensor) -> bool:
    """On a CPU torch adds up squares in few sums: the norm of 3e7 numbers is 1.7e-3 too small in fp32."""
    return tensor.numel() > _PIECE and tensor.device.type == "cpu" and tensor.dtype != torch.float64


_PIECE = 2**16


def _spread(owner: Any) -> Any:
    """How a tensor lies over ranks, equal for tensors that lie alike; None if every rank has all of it."""
    if isinstance(owner, DTensor):
        return owner.device_mesh, owner.placements
    return owner if isinstance(owner, Part) else None


def _groups_of(spread: Any) -> list[Any]:
    """The process groups whose ranks hold different parts."""
    if isinstance(spread, Part):
        return [spread.group]
    mesh, placements = spread
    if any(placement.is_partial() for placement in placements):
        raise ValueError("cannot take the norm or dot product of a tensor whose shards are unreduced partial sums")
    return [mesh.get_group(dimension) for dimension, placement in enumerate(placements) if placement.is_shard()]


def _reduced_over_ranks(total: Tensor, groups: list[Any]) -> Tensor:
    return _summed_over_ranks(total.square(), groups).sqrt()


def _summed_over_ranks(value: Tensor, groups: list[Any]) -> Tensor:
    """The sum over the ranks of process groups that span a grid; overwrites the value."""
    for group in groups:
        torch.distributed.all_reduce(value, group=group)
    return value


def dot(a: Vector, b: Vector, like: Sequence[Tensor] | None = None) -> Tensor:
    """The dot product of two vectors, accumulated in fp32 (fp64 for float64 tensors), as a 0-dim tensor.

    Args:
        a: local tensors, any shapes, devices and dtypes.
        b: tensors of the same shapes on the same devices.
        like: the tensors whose shards ``a`` and ``b`` hold, as for :func:`norm`.
    """
    if not a:
        return torch.zeros(())
    groups: dict[object, Vector] = {}
    for x, y, owner in zip(a, b, like if like is not None else a, strict=True):
        groups.setdefault(_spread(owner), []).append(_dot(x, y))
    device = a[0].device
    totals = []
    for spread, products in groups.items():
        total = torch.stack([p.to(device) for p in products]).sum()
        totals.append(total if spread is None else _summed_over_ranks(total, _groups_of(spread)))
    return torch.stack(totals).sum()


def _dot(x: Tensor, y: Tensor, piece: int = 2**24) -> Tensor:
    """Products are summed pairwise (``sum`` does, ``torch.dot`` on a CPU does not), and made a piece at a time."""
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    if x.numel() <= piece:
        return (x.to(wide) * y.to(wide)).sum()
    pairs = zip(x.reshape(-1).split(piece), y.reshape(-1).split(piece), strict=True)
    return torch.stack([(u.to(wide) * v.to(wide)).sum() for u, v in pairs]).sum()


def displacement_(
    gradient: Vector,
    length: float | Tensor,
    gradient_norm: Tensor,
    norm_of: Callable[[Vector], Tensor],
    weights: Vector | None = None,
) -> None:
    """Turn a gradient, in place, into the step of a given length in the direction of steepest ascent.

    SAM (arXiv 2010.01412, eq. 2): ``length * g / ||g||``. With ``weights`` ASAM (arXiv 2102.11600, eq. 10):
    ``length * T^2 g / ||T g||`` with ``T = |weights|``, so that ``||step / T|| = length``.

    Args:
        gradient: overwritten with the step.
        length: the step's length (in ASAM's metric where ``weights`` are given).
        gradient_norm: the gradient's norm.
        norm_of: takes the norm of a vector like the gradient.
        weights: the weights that scale ASAM's ball, or None for SAM's.
    """
    if weights is not None:
        multiply_(gradient, weights)
        gradient_norm = norm_of(gradient)
        multiply_(gradient, weights)
    scale_(gradient, length * reciprocal(gradient_norm))


EPSILON = 1e-12
"""Keeps a zero gradient from dividing by zero: it then makes a zero step."""


def reciprocal(length: Tensor) -> Tensor:
    """1 / (length + eps)."""
    return 1.0 / (length + EPSILON)


def angle(a: Vector, b: Vector, a_norm: Tensor, b_norm: Tensor, scratch: Vector, like: Sequence[Tensor]) -> Tensor:
    """The angle between two vectors in radians, 0 to pi, as a 0-dim tensor.

    ``2 atan2(||u - v||, ||u + v||)`` of the unit vectors u, v (W. Kahan): equal to ``arccos <u, v>`` but accurate for
    nearly parallel and nearly opposite vectors, where arccos loses half the digits or leaves its domain. It needs norms
    only, hence no other reduction over shards, and overwrites ``scratch``.
    """
    copy_(scratch, b)
    scale_(scratch, torch.where(b_norm > 0, a_norm / b_norm, torch.zeros_like(b_norm)))
    add_(scratch, a)
    far = norm(scratch, like)
    add_(scratch, a, -2.0)
    near = norm(scratch, like)
    return 2.0 * torch.atan2(near, far)


def slerp_weights(psi: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Weights of ``v(alpha) = c0 v0 + c1 v1`` on the great circle from v0 (alpha 0) through v1 (alpha 1).

    ``c0 = sin((1 - alpha) psi) / sin(psi)``, ``c1 = sin(alpha psi) / sin(psi)``; alpha > 1 goes past v1. Where v0 and
    v1 are parallel or opposite no circle is defined and v(alpha) is v1.
    """
    degenerate = (psi < 1e-6) | (psi > torch.pi - 1e-3)
    sine = torch.where(degenerate, torch.ones_like(psi), torch.sin(psi))
    zero, one = torch.zeros_like(psi), torch.ones_like(psi)
    return (
        torch.where(degenerate, zero, torch.sin((1.0 - alpha) * psi) / sine),
        torch.where(degenerate, one, torch.sin(alpha * psi) / sine),
    )
