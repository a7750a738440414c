"""Hooks that a pass registers or takes off: every pass begins with those that the first one began with."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor

from . import bounds
from .code import is_own

Dict = dict[Any, Any]
"""Of hooks, by the ids of their handles."""
_ON_A_PARAMETER = attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")


class Hooks:
    """The hooks on modules and parameters at one moment.

    Those of libraries stay as they are: they are installed once, and a flag says so, which stays as well.

    Args:
        on_modules: the modules' dicts of hooks.
        on_quiet: dicts that are empty at this moment.
        parameters: whose hooks count.
    """

    def __init__(self, on_modules: list[Dict], on_quiet: list[Dict], parameters: list[Any]) -> None:
        self.on_modules = on_modules
        self.on_quiet = on_quiet
        self.parameters = parameters
        self.held = [(hooks, dict(hooks)) for hooks in chain(filter(None, on_modules), _of(parameters))]

    def leave_alone(self) -> None:
        """From now on none is put back."""
        self.on_modules, self.on_quiet, self.parameters, self.held = [], [], [], []

    def are_changed(self) -> bool:
        """Whether the user's are others now."""
        return any(_differs(hooks, before) for hooks, before in self._now())

    def restore(self) -> None:
        """Have the user's be those of this moment, in their order."""
        gone: set[int] = set()
        changed = [(hooks, before) for hooks, before in self._now() if _differs(hooks, before)]
        for hooks, before in changed:
            gone |= _put(hooks, before)
        for hooks in filter(None, chain(self.on_modules, self.on_quiet) if gone else ()):
            for key in gone & {key for key, hook in hooks.items() if hook is True}:
                del hooks[key]

    def _now(self) -> Iterator[tuple[Dict, Dict]]:
        """Every dict that holds hooks now, or did so, with what it held."""
        present = chain(filter(None, self.on_modules), filter(None, self.on_quiet), _of(self.parameters))
        before = {id(hooks): content for hooks, content in self.held}
        yield from self.held
        for hooks in list(present):
            if id(hooks) not in before:
                yield hooks, {}


def _of(parameters: Iterable[Tensor]) -> Iterator[Dict]:
    return filter(None, chain.from_iterable(map(_ON_A_PARAMETER, parameters)))


def _differs(hooks: Dict, before: Dict) -> bool:
    if len(hooks) == len(before) and all(map(int.__eq__, hooks, before)):
        return False  # ids are given once
    is_gone = any(key not in hooks and _comes_back(hook) for key, hook in before.items())
    return is_gone or any(key not in before and _is_the_users(hook) for key, hook in hooks.items())


def _put(hooks: Dict, before: Dict) -> set[int]:
    """Make the hooks those from before; returns the ids of those that are taken off."""
    gone = {key for key, hook in hooks.items() if key not in before and _is_the_users(hook)}
    for key in gone:
        del hooks[key]
    back = {key: hook for key, hook in before.items() if key in hooks or _comes_back(hook)}
    later = {key: hook for key, hook in hooks.items() if key not in back}
    hooks.clear()
    hooks.update(back | later)
    return gone


def _comes_back(hook: Any) -> bool:
    """Whether a hook is put back; and so is True, which torch notes beside the id of one that takes keywords, say."""
    return hook is True or _is_the_users(hook)


def _is_the_users(hook: Any) -> bool:
    while isinstance(hook, functools.partial | types.MethodType):
        hook = hook.func if isinstance(hook, functools.partial) else hook.__func__
    if isinstance(hook, types.FunctionType):
        return isinstance(hook.__module__, str) and is_own(hook.__module__)
    return isinstance(hook, types.BuiltinFunctionType) or bool(bounds.own_classes(type(hook)))
