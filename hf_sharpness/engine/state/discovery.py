"""Finds what a pass writes, through every operator that says so: ``p.data.mul_()`` too, which no version counts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .tensors import parts_of, storage_of


class Discovery(TorchDispatchMode):
    """While it is on, tells of the first write to each of some storages, just before it happens.

    Operators inside ``torch.compile`` are not seen.

    Args:
        storages: what to look for, as ``storage_of`` names it.
        on_write: called with each that is going to be written.
    """

    def __init__(self, storages: Iterable[int], on_write: Callable[[int], None]) -> None:
        super().__init__()
        self.storages = set(storages)
        self.on_write = on_write

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Private in torch: with it a compiled region runs compiled under this mode, instead of not at all."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            storage = storage_of(tensor)
            if storage in self.storages:
                self.storages.remove(storage)
                self.on_write(storage)
        if func is torch.ops.aten.detach.default and not isinstance(args[0], Tensor):
            # torch hands a mode a number that autograd has saved (``x / 2``) as a number, which this operator refuses.
            return torch.tensor(args[0], dtype=torch.float64 if isinstance(args[0], float) else None)
        return func(*args, **kwargs)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    positions, names = _writes(func)
    for position in positions:
        if position < len(args):
            yield from _tensors_in(args[position])
    for name in names:
        if name in kwargs:
            yield from _tensors_in(kwargs[name])


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield from parts_of(value)
    elif isinstance(value, (list, tuple)):
        for element in value:
            yield from _tensors_in(element)


@functools.lru_cache(maxsize=8192)
def _writes(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of an operator's arguments that it writes to."""
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if isinstance(schema, torch._C.FunctionSchema) else []
    written = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    return tuple(i for i, _ in written), tuple(name for _, name in written)
