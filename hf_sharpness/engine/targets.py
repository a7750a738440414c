"""Which parameters are perturbed (``target_modules``): those of modules named, of normalisation layers, of the head."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .compiled import plain_name, unwrapped
from .weights import Weights

NORM, HEAD = "norm", "head"
NORMALISATIONS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm),
)
TIED = (
    "target_modules={value!r}: the head is tied to the embedding {name}, which would be perturbed with it: name the "
    "parameters to perturb, or untie them"
)
NONE_LEFT = (
    "target_modules={value!r}: the base optimizer has none of the parameters that it names any longer: steps are "
    "made without a perturbation"
)
DEEPSPEED = (
    "{prefix}target_modules={value!r} does not run under DeepSpeed, whose parts of the weights mix those to perturb "
    "with others: use FSDP2 or DistributedDataParallel, or leave it out"
)


class Targets:
    """The parameters that are perturbed.

    Args:
        value: names or globs of modules or parameters, or the words ``norm`` and ``head``, between commas. None: all.
        weights: where the weights are.

    Attributes:
        ids: of the parameters; None for all.
        share: how many of the trainable weights they hold, and of how many.

    Raises:
        ValueError: one of the names matches no parameter that is trained.
    """

    def __init__(self, value: str | None, weights: Weights) -> None:
        self.value = value
        self.weights = weights
        self.ids: set[int] | None = None
        self.share = (0, 0)
        self.found: list[nn.Parameter] = []
        if value is not None:
            if not weights.gradients_are_visible:
                raise ValueError(DEEPSPEED.format(prefix="", value=value))
            self._look(value, weights)

    def now(self) -> set[int] | None:
        """The same ids; looked up anew where the base optimizer has one of them no longer, as a module was replaced."""
        if self.value is not None:
            optimized = {id(p) for group in self.weights.optimizer.param_groups for p in group["params"]}
            if any(id(p) not in optimized for p in self.found):
                self._look(self.value, self.weights, again=True)
        return self.ids

    def _look(self, value: str, weights: Weights, again: bool = False) -> None:
        trained = {id(p): p for p in weights.parameters()}
        # Later they may be frozen, one after the other.
        self.ids = named_by(value, weights.model, None if again else trained.keys())
        self.found = [p for i, p in trained.items() if i in self.ids]
        if again and not self.found:
            warnings.warn(NONE_LEFT.format(value=value), stacklevel=2)
        sizes = {i: p.numel() for i, p in trained.items()}
        self.share = sum(size for i, size in sizes.items() if i in self.ids), sum(sizes.values())


def named_by(value: str, model: nn.Module, trained: Collection[int] | None, prefix: str = "") -> set[int]:
    """The ids of the parameters that a value names.

    Args:
        value: as ``Targets`` has it.
        model: whose parameters they are.
        trained: the ids of the parameters that are trained, of which every name must match one. None: it need not.
        prefix: what the argument's name begins with, for the error.

    Raises:
        ValueError: one of the names matches no parameter that is trained.
    """
    found: set[int] = set()
    for pattern in patterns(value):
        matched = {id(p) for p in _matching(pattern, model, value)}
        if trained is not None and matched.isdisjoint(trained):
            raise ValueError(prefix + _nothing(value, pattern, model, trained))
        found |= matched
    return found


def patterns(value: str) -> list[str]:
    """The names in a value."""
    return [name.strip() for name in value.split(",")]


def _matching(pattern: str, model: nn.Module, value: str) -> Iterator[nn.Parameter]:
    if pattern == NORM:
        for module in model.modules():
            if _normalises(module):
                yield from module.parameters(recurse=False)
    elif pattern == HEAD:
        head = _head(model)
        if head is not None:
            _check_untied(head, model, value)
            yield from head.parameters()
    else:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if any(_matches(prefix, pattern) for prefix in _prefixes(plain_name(name))):
                yield parameter


def _normalises(module: nn.Module) -> bool:
    """Whether it is a layer of torch's, or one that is called so and has nothing but a factor and an offset."""
    if isinstance(module, NORMALISATIONS):
        return True
    own = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(own) and all(p.ndim <= 1 for p in own)


def _head(model: Any) -> nn.Module | None:
    """The layer that makes the logits: as the model itself says, else its last linear one."""
    inner = unwrapped(model)
    said = getattr(inner, "get_output_embeddings", None)
    try:
        head = said() if callable(said) else None
    except (NotImplementedError, AttributeError):
        head = None
    if isinstance(head, nn.Module):
        return head
    return next((m for m in reversed(list(inner.modules())) if isinstance(m, nn.Linear)), None)


def _check_untied(head: nn.Module, model: nn.Module, value: str) -> None:
    own = {id(p) for p in head.parameters()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and id(module.weight) in own:
            raise ValueError(TIED.format(value=value, name=plain_name(name)))


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _prefixes(name: str) -> Iterator[str]:
    """The modules that a parameter is in, the outermost first, and the parameter."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _nothing(value: str, pattern: str, model: nn.Module, trained: Collection[int]) -> str:
    names = (plain_name(name) for name, p in model.named_parameters() if id(p) in trained)
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    shown = ", ".join(repr(name) for name in list(modules)[-3:])
    return (
        f"target_modules={value!r}: {pattern!r} matches no parameter that is trained. Give names or globs of modules "
        f"(such as {shown}), or the words {NORM} and {HEAD}"
    )
