"""Parameters on one memory: ``out.weight = nn.Parameter(emb.weight)`` ties two layers without one object in both.

A base optimizer steps on each of them, one after the other, so the memory moves by the sum of their steps. Likewise its
gradient is the sum of theirs, a perturbation moves it once, by the sum, and it is saved and put back once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..vectors import Vector


class Memory:
    """The memory of those tensors of a list that are in use: each one's own, or one flat piece for those that overlap.

    Args:
        tensors: all of them, local as ``vectors.local`` returns them. None is in use at first.

    Attributes:
        pieces: the memory in use. No piece overlaps another.
        members: for every piece the index, among those in use, of the first tensor on it.

    Raises:
        ValueError: overlapping tensors read their memory as numbers of different types.
    """

    def __init__(self, tensors: Vector) -> None:
        self.tensors = tensors
        self.pieces: Vector = []
        self.members: list[int] = []
        self.in_use: list[int] = []
        self.place: list[int] = []
        self.flat: dict[int, Tensor] = {}
        if len({_storage(t) for t in tensors}) < len(tensors):
            for group in _overlapping(tensors):
                self.flat.update(dict.fromkeys(group, _flat([tensors[i] for i in group])))

    def use(self, indices: list[int]) -> Vector:
        """Put further tensors to use; returns the pieces that this adds."""
        before = len(self.pieces)
        places = {id(piece): place for place, piece in enumerate(self.pieces)}
        for index in indices:
            piece = self.flat.get(index, self.tensors[index])
            if id(piece) not in places:
                places[id(piece)] = len(self.pieces)
                self.pieces.append(piece)
                self.members.append(len(self.in_use))
            self.place.append(places[id(piece)])
            self.in_use.append(index)
        return self.pieces[before:]

    def firsts(self) -> list[int]:
        """For every piece the index, among all tensors, of the first on it."""
        return [self.in_use[member] for member in self.members]

    def views(self, pieces: Vector) -> Vector:
        """For every tensor in use the view of it into ``pieces``, which are like those of the memory."""
        if not self.flat:
            return pieces
        return [self._view(index, pieces[place]) for index, place in zip(self.in_use, self.place, strict=True)]

    def folded(self, vector: Vector) -> Vector:
        """A vector with an entry for every tensor (the last may be missing) as one for the pieces.

        Where tensors overlap their entries are added up; others are passed on as they are.
        """
        if not self.flat:
            return vector
        totals: list[Tensor | None] = [None] * len(self.pieces)
        for entry, index, place in zip(vector, self.in_use, self.place, strict=False):
            total = totals[place]
            if index not in self.flat:
                total = entry
            else:
                total = torch.zeros_like(self.pieces[place]) if total is None else total
                self._view(index, total).add_(entry)
            totals[place] = total
        return [torch.zeros_like(p) if t is None else t for p, t in zip(self.pieces, totals, strict=True)]

    def _view(self, index: int, piece: Tensor) -> Tensor:
        if index not in self.flat:
            return piece
        tensor = self.tensors[index]
        offset = tensor.storage_offset() - self.flat[index].storage_offset() + piece.storage_offset()
        return piece.as_strided(tensor.size(), tensor.stride(), offset)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)  # tensors without elements share no memory


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first element of its storage that a tensor uses, and the one after the last."""
    first = int(tensor.storage_offset())
    if tensor.is_contiguous() or not tensor.numel():
        return first, first + tensor.numel()
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    return first, first + sum((size - 1) * stride for size, stride in steps) + 1


def extent_in_bytes(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor uses, and the one after the last."""
    first, after = _extent(tensor)
    return first * tensor.element_size(), after * tensor.element_size()


def _overlapping(tensors: Vector) -> list[tuple[int, ...]]:
    """The groups of two tensors or more, by index, that overlap or are linked by others that do.

    Raises:
        ValueError: two of them read the memory as numbers of different types.
    """
    by_storage: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            by_storage.setdefault(_storage(tensor), []).append(index)
    groups: list[tuple[int, ...]] = []
    for members in by_storage.values():
        end = -1
        group: list[int] = []
        for index in sorted(members, key=lambda i: _extent(tensors[i])):
            first, after = _extent(tensors[index])
            if first >= end:
                groups += [tuple(group)] if len(group) > 1 else []
                group = []
            group.append(index)
            end = max(end, after)
        groups += [tuple(group)] if len(group) > 1 else []
    for together in groups:
        dtypes = {tensors[i].dtype for i in together}
        if len(dtypes) > 1:
            raise ValueError(
                f"parameters of the types {', '.join(sorted(map(str, dtypes)))} lie on the same memory, which "
                "sharpness-aware steps cannot move as one: make one parameter of them, and view it in the forward pass"
            )
    return groups


def _flat(tensors: Vector) -> Tensor:
    """The memory from the first to the last element of tensors on one storage, as one dimension."""
    extents = [_extent(t) for t in tensors]
    first, after = min(e[0] for e in extents), max(e[1] for e in extents)
    return tensors[0].as_strided((after - first,), (1,), first)
