"""Tensors that are none of the weights: the memory they are bound to, and those bytes of it that a pass may change.

Bytes are copied of what is small, and of what a pass is known to write. Of everything else only the version is noted,
and on a CPU the sum of a few words, which tell when it is written after all. Working on bytes serves every kind of
tensor alike: expanded, of any type, made in inference mode, sharded, or resized by a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...vectors import clone, copy_
from ..overlap import extent_in_bytes
from .paths import OF_A_MICRO_BATCH, Path, root_of

SMALL = 2**16
"""Bytes of one tensor that are copied for every micro-batch without being known to change."""
SMALL_IN_ALL = 2**22
"""Bytes of all such tensors."""
SAMPLE = 64
"""Words, spread over a tensor, that tell in every step whether it was written without its version showing it."""
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)

Region = tuple[int, int, int]
"""A piece of memory: its storage, the first byte in it, and the one after the last."""


class Watched:
    """One tensor at one moment.

    Args:
        path: where it was found.
        tensor: the tensor itself; of a sharded one, this rank's part.
        rebinds: whether it is put back if it was bound to other memory (``tensor.data = other``).

    Attributes:
        alias: a tensor on the same memory, of the same sizes, which stays there when the tensor is bound elsewhere.
        region: the memory; its storage is 0 where it cannot be read as bytes.
        version: counts the writes that autograd knows of; None where they are not counted.
        saved: a copy of the bytes, or None.
        is_known: whether a pass is known to write it.
    """

    __slots__ = ("alias", "is_known", "path", "rebinds", "region", "saved", "tensor", "version")

    def __init__(self, path: Path, tensor: Tensor, rebinds: bool) -> None:
        self.path = path
        self.tensor = tensor
        self.rebinds = rebinds
        self.alias = tensor.detach()
        self.region: Region = (storage_of(self.alias), *extent_in_bytes(self.alias))
        self.version = _version(self.alias)
        self.saved: Tensor | None = None
        self.is_known = False

    @property
    def was_written(self) -> bool:
        """Whether its memory was written since, as far as versions tell."""
        return self.version is not None and _version(self.alias) != self.version

    @property
    def size(self) -> int:
        """Bytes from its first to its last element."""
        return self.region[2] - self.region[1]

    def save(self) -> None:
        """Copy the bytes."""
        self.saved = self.bytes().clone()

    @property
    def is_there(self) -> bool:
        """Whether its memory has not been freed since."""
        return self.alias.untyped_storage().nbytes() >= self.region[2]

    def checksum(self, whole: bool) -> Tensor:
        """The sum of its 8-byte words, or of its bytes: of all, or of SAMPLE of them, spread over it."""
        memory = self.bytes()
        words = memory.storage_offset() % 8 == 0 and memory.numel() % 8 == 0 and memory.data_ptr() % 8 == 0
        values = memory.view(torch.int64) if words else memory
        if not whole:
            values = values[:: -(-values.numel() // SAMPLE)]
        return values.sum(dtype=torch.int64)

    def bytes(self) -> Tensor:
        """Its memory."""
        storage: Any = self.alias.untyped_storage()
        _, first, after = self.region
        if storage.nbytes() < after:  # freed or shrunk since
            storage.resize_(after)
        empty: Any = torch.empty(0, dtype=torch.uint8, device=self.alias.device)
        return empty.set_(storage, first, (after - first,))

    def bind(self) -> None:
        """Bind the tensor to the memory and the sizes that it had."""
        tensor, alias = self.tensor, self.alias
        if self.rebinds and (
            tensor.data_ptr() != alias.data_ptr() or tensor.size() != alias.size() or tensor.stride() != alias.stride()
        ):
            tensor.data = alias


class Tensors:
    """The tensors that a walk found, at one moment.

    Args:
        found: paths and tensors.
        written: paths of tensors that a pass is known to write.
        large: copy those of them that are not small, too (what is of one micro-batch is in any case).
        on_weights: says whether a region is the memory of weights, or their gradients, which are put back elsewhere.
    """

    def __init__(
        self,
        found: list[tuple[Path, Tensor]],
        written: Collection[Path],
        large: bool,
        on_weights: Callable[[Region], bool],
    ) -> None:
        self.bound = [watched for path, tensor in found for watched in _watched(path, tensor)]
        self.by_region: dict[Region, Watched] = {}
        for watched in self.bound:
            storage, first, after = watched.region
            if storage and after > first and not on_weights(watched.region):
                one = self.by_region.setdefault(watched.region, watched)
                one.is_known |= watched.path in written
        chosen, room = [], SMALL_IN_ALL
        for watched in self.by_region.values():
            is_small = watched.size <= min(SMALL, room) and not isinstance(watched.tensor, nn.Parameter)
            room -= watched.size if is_small else 0
            if is_small or (watched.is_known and (large or root_of(watched.path) in OF_A_MICRO_BATCH)):
                chosen.append(watched)
        for watched, saved in zip(chosen, clone([w.bytes() for w in chosen]), strict=True):
            watched.saved = saved
        self.checksums: dict[Region, Tensor] = {}
        self.are_whole = False
        self.sparse = [(t, t.detach().clone(), _version(t)) for _, t in found if _is_small_sparse(t)]

    def note_checksums(self, whole: bool) -> None:
        """Of what is not copied: writes that no version tells of show in them (``.data``, NumPy's, an extension's).

        Args:
            whole: of all bytes; else of a few, and on a CPU only, where reading them waits for nothing.
        """
        self.are_whole = whole
        left = {region: w for region, w in self.by_region.items() if w.saved is None}
        self.checksums = {r: w.checksum(whole) for r, w in left.items() if whole or w.alias.device.type == "cpu"}

    def written_unseen(self) -> list[Watched]:
        """What was not copied and has been written since, as versions tell, and checksums where they were noted."""
        found = [w for w in self.by_region.values() if w.saved is None and w.was_written]
        left = [(w, self.checksums[w.region]) for w in self.by_region.values() if w.region in self.checksums]
        left = [(w, before) for w, before in left if w.saved is None and not w.was_written and w.is_there]
        for device in {w.alias.device for w, _ in left}:
            here = [(w, before) for w, before in left if w.alias.device == device]
            now = torch.stack([w.checksum(self.are_whole) for w, _ in here])
            same = now == torch.stack([before for _, before in here])
            found += [w for (w, _), is_same in zip(here, same.tolist(), strict=True) if not is_same]
        return found

    def restore(self) -> None:
        """Bind every tensor to its memory again, and give the memory the bytes that were copied."""
        for watched in self.bound:
            watched.bind()
        targets, sources = [], []
        for watched in self.by_region.values():
            if watched.saved is not None:
                target = watched.bytes()
                # What is not known to change may lie in memory that must not be written (a mapped file).
                if watched.is_known or not target.is_cpu or not torch.equal(target, watched.saved):
                    targets.append(target)
                    sources.append(watched.saved)
        copy_(targets, sources)
        for tensor, values, version in self.sparse:
            if _version(tensor) != version:
                with torch.no_grad():
                    tensor.copy_(values)


def storage_of(tensor: Tensor) -> int:
    """Where the storage of a tensor begins; 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def ranges_of(tensors: Iterable[Tensor]) -> dict[int, list[tuple[int, int]]]:
    """By storage the pieces of memory that tensors lie on: first byte, and the one after the last."""
    ranges: dict[int, list[tuple[int, int]]] = {}
    for tensor in tensors:
        if tensor.layout == torch.strided:
            ranges.setdefault(storage_of(tensor), []).append(extent_in_bytes(tensor))
    return ranges


def overlaps(first: int, after: int, pieces: Iterable[tuple[int, int]]) -> bool:
    """Whether the bytes from the first to the one after the last lie in one of the pieces, at least in part."""
    return any(first < end and begin < after for begin, end in pieces)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors with memory that a tensor consists of: itself, or what a subclass wraps (a ``DTensor``'s shard)."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    inner = [getattr(tensor, name) for name in names]
    return [part for t in inner if isinstance(t, Tensor) for part in parts_of(t)]


def _watched(path: Path, tensor: Tensor) -> list[Watched]:
    try:
        return [
            Watched(path, part, rebinds=part is tensor)
            for part in parts_of(tensor)
            if part.layout == torch.strided
            and not part.is_nested
            and not part.is_meta
            and part.device.type not in ("xla", "lazy")
        ]
    except Exception:  # a subclass that is no full tensor
        return []


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version  # inference mode's have none


def _is_small_sparse(tensor: Tensor) -> bool:
    if tensor.layout not in _SPARSE or tensor.is_meta or isinstance(tensor, nn.Parameter):
        return False
    return tensor._nnz() * tensor.element_size() <= SMALL
