"""What became of the gradient between the backward pass and the base optimizer's step, for a term to follow it.

Clipping by norm and unscaling multiply the gradient by one number. A mask, clipping by value or a factor for some of
the weights multiply every element by a number of its own; this is read off the gradient itself, ``now / before``. What
is no such product (noise, a sum, a sign) cannot be followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import vectors
from ..vectors import Vector, buckets

LARGEST = 10.0
"""An element that an edit has made more than this many times larger is taken for one that something was added to."""

CANNOT_FOLLOW = (
    "the gradient was changed between the backward pass and the optimizer's step in a way that what the method adds "
    "after the step (WSAM does, unless its mode is coupled) cannot follow: something was added to it, or its signs or "
    "sizes were replaced. Clipping, masks, factors and p.grad = None are followed. Use a method that adds nothing then "
    "(WSAM's coupled mode), or change the gradient before the first backward pass (what is in p.grad then is added to "
    "the method's gradient)"
)


def factor_of_all(before: Vector, now: Vector) -> float | None:
    """The number that every element of one gradient was multiplied by to make the other; None if there is none.

    Reads values on the host, and is much less work than :func:`follow_`, which finds what else an edit may be.

    Args:
        before: a gradient, local and whole on this rank.
        now: what became of it.
    """
    if vectors.are_equal(before, now):
        return 1.0
    size, before_size = float(vectors.norm(now)), float(vectors.norm(before))
    if not 0 < size < math.inf or not 0 < before_size < math.inf:
        return None
    factor = size / before_size
    return factor if vectors.is_multiple(now, before, factor) else None


def follow_(
    terms: Vector,
    before: Vector,
    now: Vector,
    norm_of: Callable[[Vector], Tensor],
    default: Tensor | float,
    limit: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Multiply the terms, in place, by the factors that turned one gradient into the other.

    Where all was multiplied by one number, so are the terms, also where the gradient was zero. Else an element whose
    gradient was or became zero gets no term.

    Args:
        terms: what to multiply, local.
        before: the gradient that the terms belong to, shaped as they are.
        now: the gradient that the base optimizer gets.
        norm_of: the global norm of a list with a tensor for each of them, over shards.
        default: the factor if ``before`` is all zero.
        limit: the largest factor of a single element that is believed.

    Returns:
        The factor of the norm, and whether the change cannot be followed, 0-dim tensors: nothing waits for the device.
        A gradient that is not finite any more counts as followed: clipping turns its zeros into NaN, and the step is
        skipped, or lost without the terms.
    """
    size = norm_of(now)
    factor = _factor_of_norm(before, size, norm_of, default)
    same: Vector = []
    opposite: Vector = []
    for part in _parts(before):
        was, sizes = _flat(before[part])
        scaled, is_ = was * factor.to(was), _flat(now[part])[0].to(was)
        same += vectors.norms(list((is_ - scaled).split(sizes)))
        opposite += vectors.norms(list((is_ + scaled).split(sizes)))
    distances = norm_of(same), norm_of(opposite)
    factor = torch.where(distances[0] <= distances[1], factor, -factor)
    exact = all(t.dtype == torch.float64 for t in before)
    uniform = torch.minimum(*distances) <= (1e-12 if exact else 1e-5) * size
    lost = torch.zeros_like(uniform)
    for part in _parts(before):
        was, sizes = _flat(before[part])
        is_ = _flat(now[part])[0].to(was)
        whole, alike = factor.to(was), uniform.to(was.device)
        most = limit.to(was) if isinstance(limit, Tensor) else limit
        factors = torch.where(was != 0, is_ / was, 0)
        strange = ((was == 0) & (is_ != 0)) | (factors < 0) | (factors > most)
        lost |= (strange & ~alike).any().to(lost.device)
        factors = torch.where(alike, whole * ((is_ != 0) | (was == 0)), factors.clamp(min=0).clamp(max=most))
        pieces = [p.view_as(t) for p, t in zip(factors.split(sizes), terms[part], strict=True)]
        vectors.multiply_(terms[part], pieces)
    return factor, lost & size.isfinite()


def follow_one_factor_(
    terms: Vector, before: Vector, now: Vector, norm_of: Callable[[Vector], Tensor], default: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Multiply the terms, in place, by the number that turned one gradient into the other; by 0 if none did.

    Args:
        terms: what to multiply, local.
        before: the gradient that the terms belong to, shaped as they are; spent.
        now: the gradient that the base optimizer gets.
        norm_of: the global norm of a list with a tensor for each of them.
        default: the number if ``before`` is all zero.

    Returns:
        The number, and whether there is none, 0-dim tensors. Of a gradient that is not finite any more there is one.
    """
    size = norm_of(now)
    factor = _factor_of_norm(before, size, norm_of, default)
    otherwise = is_no_multiple(before, now, factor, size)
    vectors.scale_(terms, torch.where(otherwise, 0.0, factor))
    return factor, otherwise


def is_no_multiple(before: Vector, now: Vector, factor: Tensor, size: Tensor) -> Tensor:
    """Whether a gradient of a finite norm is something else than a positive multiple of ``before``, which is spent."""
    return (~vectors.is_multiple_of_spent(now, before, factor) | (factor < 0)) & size.isfinite()


def _factor_of_norm(
    before: Vector, size: Tensor, norm_of: Callable[[Vector], Tensor], default: Tensor | float
) -> Tensor:
    before_norm = norm_of(before)
    return torch.where(before_norm > 0, size / before_norm, default)


def _parts(vector: Vector, bytes_: int = 25 * 2**20) -> Iterator[slice]:
    """Runs of tensors of one type and device, small enough for a few copies of them not to count."""
    start = 0
    for bucket in buckets(vector, bytes_):
        yield slice(start, start + len(bucket))
        start += len(bucket)


def _flat(tensors: Vector) -> tuple[Tensor, list[int]]:
    """Tensors one after the other, and the number of elements of each."""
    return torch.cat([t.reshape(-1) for t in tensors]), [t.numel() for t in tensors]
