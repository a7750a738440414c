"""Which objects a walk looks into, and how."""

from __future__ import annotations

import argparse
import functools
import sys
import types
import weakref
from array import array
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.data
from torch import Tensor, nn

from . import bounds
from .draws import Draws, LongDraws
from .generators import is_generator


@bounds.of_a_type
def visit_of(kind: type) -> str | None:
    """How objects of a type are walked: the name of a method of the walk's. None if they are not."""
    numpy = sys.modules.get("numpy")
    package = bounds.module_of(kind).partition(".")[0]
    for base, visit in (
        (Tensor, "tensor"),
        (torch.jit.ScriptModule, "scripted"),
        (nn.Module, "wrapper" if bounds.is_wrapper(kind) else "module"),
        (dict, "mapping"),
        ((list, deque, set), "elements"),
        (tuple, "tuple"),
        (types.FunctionType, "function"),
        ((types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType), "method"),
        (functools.partial, "partial"),
        (torch.utils.data.Dataset, "instance" if bounds.own_classes(kind) else "dataset"),
        (torch.utils.data.DataLoader, "loader"),
        (torch.utils.data.Sampler, "instance" if bounds.own_classes(kind) else None),
        (torch.optim.Optimizer, "optimizer"),
        (torch.optim.lr_scheduler.LRScheduler, "scheduler"),
        (bounds.NO_STATE, None),
        (torch.quasirandom.SobolEngine, "instance"),
        (
            (types.SimpleNamespace, argparse.Namespace, weakref.WeakKeyDictionary, UserDict, UserList, ChainMap),
            "instance",
        ),
        ((bytearray, array), "numbers"),
    ):
        if issubclass(kind, base):
            return visit
    if is_generator(kind):
        return "generator"
    if numpy is not None and issubclass(kind, numpy.ndarray):
        known = kind in (numpy.ndarray, numpy.matrix, numpy.recarray, numpy.memmap, numpy.ma.MaskedArray)
        return "array" if known or bounds.own_classes(kind) else None
    if kind in (Draws, LongDraws) or (package in bounds.OF_ITERATORS and hasattr(kind, "__next__")):
        return "iterator"
    if bounds.module_of(kind) == "accelerate.scheduler":
        return "scheduler"
    if package in bounds.PRIVATE_TO_LIBRARIES:
        return "instance" if issubclass(kind, Mapping) or bounds.is_a_cache(kind) else None
    if package in sys.stdlib_module_names or package == "builtins":
        return None
    return "instance"


def is_looked_into(elements: list[Any]) -> bool:
    """Whether the elements of a list are walked, one by one: not those of a long one, which is data.

    But a long list of tensors may be an average of all parameters, one of deques or arrays a memory of each class.
    """
    kinds = set(map(type, elements)) - bounds.ATOMS
    if not kinds or len(elements) > bounds.LONGEST_OF_TENSORS:
        return False
    return len(elements) <= bounds.LONGEST_OF_OBJECTS or all(
        issubclass(kind, Tensor | deque) or visit_of(kind) == "array" for kind in kinds
    )
