"""What is on in torch for a while is off again afterwards: an interrupt may come between any two lines, torch's too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

Result = TypeVar("Result")
Hook = Callable[..., Any]


def modes_on() -> list[TorchFunctionMode]:
    """Every ``TorchFunctionMode`` that is on, the uppermost last (``with torch.device(...)`` is one)."""
    # Private in torch, which has no public way to ask; tests/engine/test_for_a_while.py fails if it moves.
    return list(overrides._get_current_function_mode_stack())


def run_under(mode: TorchFunctionMode, function: Callable[[], Result]) -> Result:
    """Call it while the mode is on; however that ends, the mode is off afterwards.

    ``with mode:`` leaves it on where an interrupt comes while it is being entered or left, and takes off another one
    where an interrupt comes while torch has put it aside for a moment.
    """
    try:
        try:
            mode.__enter__()
            return function()
        finally:
            leave(mode)
    finally:
        leave(mode)  # where an interrupt has come in the first attempt


def leave(mode: TorchFunctionMode | TorchDispatchMode | None) -> None:
    """Take it off torch's stack, wherever it lies on it; the others stay, in their order. Harmless to repeat.

    Args:
        mode: one, or None: none.
    """
    if isinstance(mode, TorchDispatchMode):
        _take_off(mode, _python_dispatch._get_current_dispatch_mode_stack, _python_dispatch)
    elif mode is not None:
        _take_off(mode, overrides._get_current_function_mode_stack, overrides)


@contextlib.contextmanager
def has(instance: object, name: str, value: Any) -> Iterator[None]:
    """Inside, the instance itself has this attribute, whatever its class says; afterwards what it had of its own.

    Args:
        instance: one with a ``__dict__``.
        name: of the attribute.
        value: that it is to have.
    """
    own = vars(instance)
    before = {name: own[name]} if name in own else {}
    try:
        try:
            own[name] = value
            yield
        finally:
            _put_back(own, name, before)
    finally:
        _put_back(own, name, before)  # where an interrupt has come in the first attempt


@contextlib.contextmanager
def hooked(register: Callable[[Hook], RemovableHandle], hook: Hook) -> Iterator[None]:
    """Inside, the hook is registered.

    Args:
        register: such as ``register_module_forward_hook``, which registers it for all modules there are.
        hook: what it is to register.
    """
    handles: list[RemovableHandle] = []
    try:
        try:
            handles.append(register(hook))
            yield
        finally:
            _remove(handles)
    finally:
        _remove(handles)  # where an interrupt has come in the first attempt


def _put_back(own: dict[str, Any], name: str, before: dict[str, Any]) -> None:
    if before:
        own.update(before)
    else:
        own.pop(name, None)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _take_off(mode: object, stack: Any, torchs: Any) -> None:
    above = []
    while any(one is mode for one in stack()):
        above.append(torchs._pop_mode())
    for one in reversed(above):
        if one is not mode:
            torchs._push_mode(one)
