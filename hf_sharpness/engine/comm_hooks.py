"""DDP communication hooks with a memory, such as PowerSGD's error feedback: one pass of a step counts for it."""

from __future__ import annotations

import copy
import random
import sys
from typing import Any

import torch
from torch import Tensor


class HookMemory:
    """What the hooks of a DDP model remember before a step's first pass, for every replay to begin from the same.

    Their state afterwards is the one that the last replay left, whose gradient the base optimizer steps with.

    Args:
        wrapper: the DDP model.
    """

    def __init__(self, wrapper: Any) -> None:
        self.states = [(state, _copied(_attributes(state))) for state in hook_states(wrapper)]

    def restore(self) -> None:
        """The hooks remember again what they did."""
        for state, values in self.states:
            for name, value in _copied(values).items():
                setattr(state, name, value)


def hook_states(wrapper: Any) -> list[Any]:
    """The states of those communication hooks that have one with attributes that can change."""
    # Private in torch, which has no public way to ask; tests/modes/test_mode_gradients.py fails if it moves.
    states = [state for _, state in getattr(wrapper, "_comm_hooks", [])]
    return [state for state in states if any(_can_change(value) for value in _attributes(state).values())]


def _attributes(state: Any) -> dict[str, Any]:
    slots = [name for cls in type(state).__mro__ for name in getattr(cls, "__slots__", ())]
    return {name: getattr(state, name) for name in [*slots, *getattr(state, "__dict__", {})] if hasattr(state, name)}


def _can_change(value: Any) -> bool:
    return type(value) in (int, float) or isinstance(value, (Tensor, dict, list, set)) or _is_generator(value)


def _is_generator(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    kinds = (random.Random, *((numpy.random.RandomState, numpy.random.Generator) if numpy is not None else ()))
    return isinstance(value, kinds)


def _copied(value: Any) -> Any:
    """Tensors, containers and random generators copied; process groups and the like shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if _is_generator(value):
        return copy.deepcopy(value)
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update((key, _copied(element)) for key, element in value.items())
        return result
    if isinstance(value, (list, tuple, set)):
        return type(value)(_copied(element) for element in value)
    return value
