"""Copies of a batch, for a pass to change in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def copied(inputs: Any, device: torch.device | None = None) -> Any:
    """Inputs with new containers and new tensors; other objects in them, and tensors that require grad, are shared.

    Args:
        inputs: nested mappings, lists and tuples.
        device: copy only the tensors on devices of its type. Default None: all.
    """
    done: dict[int, Tensor] = {}  # one tensor under two names stays one tensor

    def copy_of(data: Any) -> Any:
        if isinstance(data, Tensor):
            if data.requires_grad or (device is not None and data.device.type != device.type):
                return data
            if id(data) not in done:
                done[id(data)] = data.clone()
            return done[id(data)]
        if isinstance(data, MutableMapping):
            result = copy.copy(data)
            for key, value in data.items():
                result[key] = copy_of(value)
            return result
        if isinstance(data, Mapping):
            make: Any = type(data)
            return make({key: copy_of(value) for key, value in data.items()})
        if isinstance(data, (list, tuple)):
            make = getattr(data, "_make", type(data))  # a named tuple's
            return make(copy_of(value) for value in data)
        return data

    if isinstance(inputs, (Tensor, Mapping, list, tuple)) or is_iterator(inputs):
        return copy_of(inputs)
    return copy.copy(inputs)


def is_iterator(value: Any) -> bool:
    """Whether it can be read just once."""
    return hasattr(type(value), "__next__")
