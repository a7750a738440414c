"""Models that torch.compile has a hand in: hooks on them are traced, and names and attributes lie one level deeper."""

from __future__ import annotations

from typing import Any

from torch import nn

_INNER = "_orig_mod"
"""torch's name for the module behind ``torch.compile(module)``; ``tests/engine/test_compiled.py`` fails if it moves."""


def is_compiled(model: nn.Module) -> bool:
    """Whether a module in the model was compiled, by ``torch.compile(module)`` or by ``module.compile()``."""
    return any(
        _INNER in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module behind ``torch.compile`` and ``DistributedDataParallel``."""
    inner: Any = model
    while hasattr(inner, _INNER) or isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = getattr(inner, _INNER, None) or inner.module
    return inner


def plain_name(name: str) -> str:
    """A parameter's name without what ``DistributedDataParallel`` and ``torch.compile`` put into it."""
    return ".".join(part for part in name.removeprefix("module.").split(".") if part != _INNER)
