"""Lengths of long vectors: norms and dot products over all of their tensors, and over the ranks that hold parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .shards import DTensor, Part, Vector


def norm(vector: Vector, like: Sequence[Tensor] | None = None) -> Tensor:
    """One global L2 norm over all tensors, accumulated in fp32 (fp64 for float64 tensors), as a 0-dim tensor.

    In fp32 it is infinite from 1.8e19 on, where the squares overflow: see :func:`norm_of_large`.

    Args:
        vector: local tensors, any shapes, devices and dtypes.
        like: the tensors whose shards ``vector`` holds. Where one is a ``DTensor``, the squares are summed over the
            mesh dimensions that shard it, so that every rank gets the norm of the whole; where it is a ``Part``, over
            the ranks of its group.
    """
    return _whole_norm(vector, like, _norms_of_pieces)


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
    if not any(_is_long(t) for t in tensors):
        return _norms_of_pieces(tensors)
    pieces = [_pieces(t) for t in tensors]
    all_norms = iter(_norms_of_pieces([piece for parts in pieces for piece in parts]))
    return [torch.linalg.vector_norm(torch.stack([next(all_norms) for _ in parts])) for parts in pieces]


def _norms_of_pieces(tensors: Vector) -> Vector:
    """The norms of pieces that the tensors consist of, all in one type: their norm is the norm of all."""
    dtypes = {t.dtype for t in tensors}
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    if any(_is_long(t) for t in tensors):
        tensors = [piece for t in tensors for piece in _pieces(t)]
    if dtypes == {wide}:
        return list(torch._foreach_norm(tensors))
    return [n.to(wide) for n in torch._foreach_norm(tensors, 2, dtype=wide)]


def _pieces(tensor: Tensor) -> Vector:
    return list(tensor.reshape(-1).split(_PIECE)) if _is_long(tensor) else [tensor]


def _is_long(tensor: Tensor) -> bool:
    """On a CPU torch adds up squares in few sums: the norm of 3e7 numbers is 1.7e-3 too small in fp32."""
    return tensor.numel() > _PIECE and tensor.device.type == "cpu" and tensor.dtype != torch.float64


_PIECE = 2**16


def _spread(owner: Any) -> Any:
    """How a tensor lies over ranks, equal for tensors that lie alike; None if every rank has all of it."""
    if isinstance(owner, DTensor):
        return owner.device_mesh, owner.placements
    return owner if isinstance(owner, Part) else None


def is_spread(owner: Any) -> bool:
    """Whether other ranks have other parts of a tensor, given as ``like`` of :func:`norm`."""
    return _spread(owner) is not None


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
