"""Arithmetic on lists of tensors seen as one long vector.

A model's gradient, a perturbation and the weights themselves are lists of tensors of equal shapes. Everything here
works on such lists with the fused ``torch._foreach_*`` kernels: a handful of launches whatever the number of tensors.

Sharded tensors (``DTensor``: FSDP2, tensor parallel) are handled through their local shards: element-wise work needs no
communication, and ``norm`` and ``dot`` (``lengths.py``) sum over the ranks that hold different shards.

``torch._foreach_*`` carries a leading underscore but is what ``torch.optim`` and ``torch.nn.utils`` are built on; it is
used here and in ``lengths.py`` only, and ``tests/test_vectors.py`` fails if a function moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .lengths import dot as dot
from .lengths import is_spread as is_spread
from .lengths import norm as norm
from .lengths import norm_of_large as norm_of_large
from .lengths import norms as norms
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


def add_spending_(vector: Vector, other: Vector, factor: float | Tensor) -> None:
    """vector <- vector + factor * other, and ``other`` is spent: it saves a pass over memory where factors can be read.

    Args:
        vector: what is added to.
        other: overwritten, or not.
        factor: a number, or a 0-dim tensor.
    """
    if isinstance(factor, Tensor) and not is_on_host(factor):
        scale_(other, factor)
        factor = 1.0
    add_(vector, other, float(factor))


def is_on_host(tensor: Tensor) -> bool:
    """Whether reading a tensor's value waits for nothing."""
    return tensor.device.type == "cpu"


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


def are_equal(vector: Vector, other: Vector) -> bool:
    """Whether two vectors of the same shapes are equal in every element. Reads values on the host."""
    return all(map(torch.equal, vector, other))


def is_multiple(vector: Vector, other: Vector, factor: float) -> bool:
    """Whether vector = factor * other, to within rounding of every single element. Reads values on the host.

    Args:
        vector: local tensors of float32 or float64 (of other types: False).
        other: tensors of the same shapes.
        factor: a number.
    """
    start = 0
    for part in buckets(vector, 2**20):  # all that is made of it stays within a processor's cache
        others = list(torch._foreach_mul(other[start : start + len(part)], factor))
        start += len(part)
        if not _is_same(part, others):  # also where one is not a number
            return False
    return True


def is_multiple_of_spent(vector: Vector, other: Vector, factor: Tensor) -> Tensor:
    """The same of a factor on the device, and nothing is read: a 0-dim tensor. ``other`` is overwritten."""
    scale_(other, factor)
    start, same = 0, []
    for part in buckets(vector, 2**25):  # all that is made of it is one copy of a part
        same.append(_is_same(part, other[start : start + len(part)]).to(factor.device))
        start += len(part)
    return torch.stack(same).all()


def _is_same(part: Vector, others: Vector) -> Tensor:
    """Whether tensors of one type are equal to within rounding of every element; overwrites the others."""
    dtype = part[0].dtype
    if dtype not in _SAME_WITHIN or any(t.dtype != dtype for t in others):
        return torch.zeros((), dtype=torch.bool)
    torch._foreach_sub_(others, part)
    torch._foreach_abs_(others)
    torch._foreach_sub_(others, torch._foreach_abs(part), alpha=_SAME_WITHIN[dtype])
    largest = torch._foreach_max([t for t in others if t.numel()] or [torch.zeros(1, dtype=dtype)])
    return torch.stack(largest).max() <= torch.finfo(dtype).tiny


_SAME_WITHIN = {torch.float32: 1e-5, torch.float64: 1e-12}


def buckets(vector: Vector, size: int) -> list[Vector]:
    """The tensors in order, in lists of one type and device and of at most ``size`` bytes (but for a larger tensor)."""
    buckets: list[Vector] = []
    filled = 0
    for tensor in vector:
        bytes_ = tensor.numel() * tensor.element_size()
        alike = buckets and (buckets[-1][0].dtype, buckets[-1][0].device) == (tensor.dtype, tensor.device)
        if not alike or filled + bytes_ > size:
            buckets.append([])
            filled = 0
        buckets[-1].append(tensor)
        filled += bytes_
    return buckets


def by_device(vector: Vector) -> dict[torch.device, Vector]:
    """The tensors grouped by the device that holds them (one group unless the model is spread over devices)."""
    groups: dict[torch.device, Vector] = {}
    for tensor in vector:
        groups.setdefault(tensor.device, []).append(tensor)
    return groups


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
    ratio = torch.where(b_norm > 0, a_norm / b_norm, torch.zeros_like(b_norm))
    if is_on_host(ratio):
        copy_(scratch, a)
        add_(scratch, b, -float(ratio))
        near = norm(scratch, like)
        square = 4.0 * a_norm.square() - near.square()  # ||u - v||^2 + ||u + v||^2 = 4
        if float(ratio) > 0 and float(square) >= 2.0 * float(a_norm) ** 2:  # up to a right angle no digit is lost
            return 2.0 * torch.atan2(near, square.sqrt())
        add_(scratch, b, 2.0 * float(ratio))
        return 2.0 * torch.atan2(near, norm(scratch, like))
    copy_(scratch, b)
    scale_(scratch, ratio)
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
