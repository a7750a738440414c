"""``torch.autograd.backward`` as a ``TorchFunctionMode`` is to see it, also in torch 2.6, which tells no mode of it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function


class _Sees(TorchFunctionMode):
    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= func is torch.autograd.backward
        return func(*args, **(kwargs or {}))


def make_backward_overridable() -> None:
    """Where torch does not tell a mode of ``torch.autograd.backward``, put a function in its place that does."""
    with torch.inference_mode(False), torch.enable_grad():  # whatever holds where this is imported
        leaf = torch.zeros((), requires_grad=True)
        with _Sees() as mode:
            torch.autograd.backward(leaf)
    if mode.seen:
        return
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        listed = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        if has_torch_function(listed):
            return handle_torch_function(backward, listed, tensors, *args, **kwargs)
        return original(tensors, *args, **kwargs)

    torch.autograd.backward = backward
