"""Tensors of which a rank stores a part: this rank's part of them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

try:
    from torch.distributed.tensor import DTensor, Replicate
except ImportError:  # a torch build without distributed support has no sharded tensors

    class DTensor:  # type: ignore[no-redef]
        """Stands in where torch cannot make a DTensor: nothing is an instance of it."""


Vector = list[Tensor]


class Part:
    """In ``like``, for a plain tensor of which every rank of a process group holds another part."""

    def __init__(self, group: Any) -> None:
        self.group = group


def local(tensors: Sequence[Tensor]) -> Vector:
    """The part of each tensor that this rank stores, sharing memory with it and detached from autograd.

    A complex number is two real ones: the tensors of the result are real, with a last dimension of 2.
    """
    detached = [t.detach() for t in tensors]
    stored = [t.to_local() if isinstance(t, DTensor) else t for t in detached]
    return [torch.view_as_real(t) if t.is_complex() else t for t in stored]


def shaped_like(tensor: Tensor, owner: Tensor) -> Tensor:
    """A local tensor as what its owner is: complex, or this rank's shard of a ``DTensor`` placed as the owner is."""
    if owner.is_complex():
        tensor = torch.view_as_complex(tensor)
    if not isinstance(owner, DTensor):
        return tensor
    return DTensor.from_local(
        tensor, owner.device_mesh, owner.placements, run_check=False, shape=owner.shape, stride=owner.stride()
    )


def shard_of(whole: Tensor, owner: DTensor) -> Tensor:
    """This rank's shard of a tensor that every rank has whole, as a ``DTensor`` placed as the owner is."""
    replicated = [Replicate()] * owner.device_mesh.ndim
    return DTensor.from_local(whole, owner.device_mesh, replicated, run_check=False).redistribute(
        placements=owner.placements
    )


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor's storage is spread over ranks by a device mesh."""
    return isinstance(tensor, DTensor)


def placement(tensor: Any) -> str:
    """How a sharded tensor lies on its device mesh, in words."""
    return f"{tensor.device_mesh.shape} {tensor.placements}"
