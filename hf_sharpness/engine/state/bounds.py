"""Where a walk over Python objects ends: what is no state of a pass, or is shared with others than the passes."""

from __future__ import annotations

import enum
import functools
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.utils.data
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .code import is_own
from .holders import LONGEST, Slots

_Function = TypeVar("_Function", bound=Callable[..., Any])

MOST = 20_000
"""Objects that one walk looks at: the nearest ones."""
LONGEST_OF_OBJECTS, LONGEST_OF_TENSORS = 64, 2_000
"""Elements of a list that are looked at one by one: of any objects; of tensors, arrays and deques."""
LARGEST_ARRAY = 2**16
"""Bytes of a NumPy array that is copied; a larger one is watched as a tensor is. One of Python's is left alone then."""
ATOMS = {
    *(int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), range, slice, type),
    *(torch.dtype, torch.device, torch.Size, torch.layout, types.ModuleType),
}
"""Types of values that hold nothing."""
PRIVATE_TO_LIBRARIES = {
    *("torch", "transformers", "tokenizers", "datasets", "accelerate", "deepspeed", "huggingface_hub", "numpy"),
    *("pandas", "pyarrow", "PIL", "wandb", "tqdm", "tensorboard", "tensorboardX", "mlflow", "comet_ml", "trackio"),
    *("neptune", "aim", "clearml", "swanlab", "ray", "optuna", "vllm", "bitsandbytes", "matplotlib"),
    *("safetensors", "triton", "jax", "tensorflow", "IPython", "hf_sharpness"),
}
"""Objects of these packages' classes are services, settings or data. Modules (``nn.Module``) are walked anyway."""
CACHES = "transformers", "Cache", "cache_utils"
"""Of that package classes with this in their names, and those of a module of that name, hold keys and values."""
_WRAPPERS = {"torch.nn.parallel", "torch.distributed", "torch._dynamo", "deepspeed", "accelerate"}
"""Modules of these packages' classes hold a model and state of their own, which no pass is to repeat."""
SHARED_BY_THREADS = {"_thread", "threading", "queue", "_queue", "multiprocessing", "concurrent", "asyncio", "_asyncio"}
"""An object that holds one of these modules' objects is a service that other threads write to."""
NO_STATE = (
    *(enum.Enum, type, torch.autograd.Function),
    *(TorchDispatchMode, TorchFunctionMode),
)
"""Base classes of objects that are none of a pass's state: constants, observers."""
NO_VARIABLES = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
"""What a script's names are bound to once and for all."""
OF_ITERATORS = {"builtins", "itertools", "torch"}
"""The packages whose iterators passes may draw from: generators, ``iter(...)``, ``cycle(...)``, a data loader's."""
PLAIN = {dict, OrderedDict, defaultdict, Counter}
"""Dicts that have no attributes."""


def holds_nothing(value: Any) -> bool:
    """Whether there is nothing in a value that could change: a number, a name, a tuple of these, a function of C's."""
    kind = type(value)
    if kind is types.BuiltinFunctionType:
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType | type)
    return kind in ATOMS or (kind is tuple and all(type(element) in ATOMS for element in value))


def module_of(kind: type) -> str:
    """The name of the module that defines a class."""
    name = kind.__module__
    return name if isinstance(name, str) else ""


def is_a_service(values: Iterable[Any]) -> bool:
    """Whether an object that holds these is written to by other threads (loggers, progress bars, queues)."""
    return bool(of_threads(values))


def of_threads(values: Iterable[Any]) -> list[Any]:
    """Those of them that threads share: locks, threads, queues."""
    return [value for value in values if module_of(type(value)).partition(".")[0] in SHARED_BY_THREADS]


def is_a_cache(kind: type) -> bool:
    """Whether objects of a library's class hold keys and values of past tokens: these are state of a pass."""
    library, name, module = CACHES
    place = module_of(kind).split(".")
    return place[0] == library and (name in kind.__name__ or place[-1] == module)


def attributes_of(value: Any) -> dict[str, Any]:
    """An object's own attributes; empty where it has none, or hides them."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except Exception:
        return {}
    return own if type(own) is dict else {}


def contents_of(value: Any, skip: frozenset[str]) -> dict[str, Any]:
    """What an object has in its own attributes and in its slots, but for some names."""
    items = [*attributes_of(value).items(), *Slots(value, slots_of(type(value))).items()]
    return {name: held for name, held in items if name not in skip}


def large_in(value: Any) -> frozenset[str]:
    """Names in a sampler of the user's under which it holds the examples to draw from, by class or all of them."""
    if not isinstance(value, torch.utils.data.Sampler):
        return frozenset()
    return frozenset(name for name, held in attributes_of(value).items() if _is_data(held))


def _is_data(held: Any) -> bool:
    kind: Any = next((kind for kind in (list, dict, set) if isinstance(held, kind)), None)
    if kind is None or kind.__len__(held) <= LONGEST_OF_OBJECTS:
        return False
    return kind.__len__(held) > LONGEST or (kind is dict and not all(type(v) in ATOMS for v in dict.values(held)))


def label(key: Any) -> str | int:
    """What a key is called in a path: others may compare by the user's code."""
    return key if type(key) in (str, int) else type(key).__name__


def of_a_type(function: _Function) -> _Function:
    """Remember a function's result for each type that it is called with."""
    remembered: Any = functools.lru_cache(maxsize=4096)(function)
    return remembered


@of_a_type
def own_classes(kind: type) -> list[type]:
    """Those of a class's bases, itself included, that the user has written."""
    return [base for base in kind.__mro__ if is_own(module_of(base))]


@of_a_type
def slots_of(kind: type) -> Mapping[str, types.MemberDescriptorType]:
    """The slots of a class and its bases, as far as they are written in Python: those of C's may not be set."""
    found: dict[str, types.MemberDescriptorType] = {}
    for base in kind.__mro__:
        if "__slots__" in vars(base):
            found.update((n, v) for n, v in vars(base).items() if type(v) is types.MemberDescriptorType)
    return found


def is_wrapper(kind: type) -> bool:
    """Whether modules of a class belong to a framework. Not FSDP2's: they derive from the class that they shard."""
    names = [module_of(base) for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    return bool(names) and all(any(n == w or n.startswith(w + ".") for w in _WRAPPERS) for n in names)
