"""Memory of a step: bytes read and written by its operators, and bytes that live at once, in multiples of the weights.

Both are counted operator by operator, so they are exact and the same on every machine.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arms import Arm

LEAST = {
    "SAM": ("read g for its norm 1, copy w 2, w += c g 3, put back 2", 8),
    "WSAM coupled": ("SAM's 8, h = (1 - a) g + a g_s 3", 11),
    "WSAM decoupled": ("SAM's 8, g_s - g 3, w -= c (g_s - g) 3", 14),
    "WSAM preconditioned": ("SAM's 8, g_s - g 3, w -= c (g_s - g) / (sqrt(v) + eps) 4", 15),
    "XSAM, alpha fixed": ("SAM's 8, norm of g_s 1, angle to g 2, h = c0 g + c1 g_s 3", 14),
}
"""What an update must read and write besides its passes and the base optimizer's step, in units of the weights."""


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, as their schemas tell; views and allocations move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in _MOVE_NOTHING:
            written, is_overwritten = _writes(func)
            for index, value in enumerate(args):
                size = _size(value)
                if index in written:
                    self.bytes += size if is_overwritten else 2 * size
                else:
                    self.bytes += size
            if not written:
                self.bytes += _size(result)
        return result


_MOVE_NOTHING = {
    *("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"),
    *("split", "_unsafe_view", "_reshape_alias"),
}


@functools.lru_cache(maxsize=4096)
def _writes(func: Any) -> tuple[frozenset[int], bool]:
    """Which arguments an operator writes to, and whether it does not read them."""
    arguments = func._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    return frozenset(written), func.overloadpacket.__name__ in ("copy_", "_foreach_copy_", "zero_", "fill_")


def _size(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(value) if isinstance(t, Tensor))


class LiveStorage(TorchDispatchMode):
    """Bytes of all storages made under this mode (and of those given) that are still referenced by anything."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.add(known)

    def add(self, tensors: list[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def live(self) -> int:
        self.storages = {key: value for key, value in self.storages.items() if not value[0].expired()}
        return sum(size for _, size in self.storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        self.peak = max(self.peak, self.live())
        return result


class Memory:
    """Of one arm, in bytes.

    Attributes:
        unit: of the trainable weights.
        traffic: read and written in a step.
        peak: the most that lives at once in a step.
        persistent: what lives between steps, weights and the base optimizer's state among it.
        checkpoint: what a checkpoint holds besides the model.
    """

    def __init__(self, arm: Arm) -> None:
        assert arm.training is not None
        parameters = list(arm.training.model.parameters())
        self.unit = _size([p for p in parameters if p.requires_grad])
        with Traffic() as traffic:
            arm.step()
        self.traffic = traffic.bytes
        if parameters[0].is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            arm.step()
            self.peak = torch.cuda.max_memory_allocated() - before
            self.persistent = _size(parameters + _state(arm))
            self.peak += self.persistent
        else:
            live = LiveStorage(parameters + _state(arm) + list(_values(arm)))
            with live:
                arm.step()
            self.peak, self.persistent = live.peak, live.live()
        buffer = io.BytesIO()
        torch.save(arm.state(), buffer)
        self.checkpoint = len(buffer.getbuffer())


def _state(arm: Arm) -> list[Tensor]:
    """What the optimizer holds, and the one that it wraps."""
    assert arm.training is not None
    optimizer = arm.training.optimizer
    wrapped = getattr(optimizer, "base_optimizer", optimizer)
    return list({id(t): t for o in (optimizer, wrapped) for t in _tensors_in(o.state)}.values())


def _values(arm: Arm) -> Iterator[Tensor]:
    assert arm.training is not None
    for batch in arm.training.batches:
        yield from batch.values()


def _tensors_in(value: Any) -> list[Tensor]:
    """Tensors in nested containers, an optimizer's state by parameter among them."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if not isinstance(value, (dict, list, tuple)) and hasattr(value, "values"):
        inner = value.values()
    return [tensor for v in inner for tensor in _tensors_in(v)]


def measured(make: Callable[[], Arm]) -> Memory:
    """The memory of an arm that is made for it, after a step that warms it up, and given back."""
    arm = make()
    arm.step()
    return Memory(arm)
