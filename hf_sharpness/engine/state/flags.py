"""Which names a further pass does not put back: flags guard what is to happen once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from .holders import MISSING, Content, Holder, LeftAlone, Names

_MODE = "training"
"""A module's flag that a pass may leave changed (``model.eval()``): it guards nothing that is to happen once."""


class Flags(LeftAlone):
    """Flags (names that hold True or False), as the first passes of a step have changed them.

    A flag that guards a message, or an initialisation of weights that depends on data, is set once, by the first pass,
    and further passes shall find it set: a library's module has installed its hooks, say. But where the first pass has
    also created what the flag stands for, or registered a hook, a further pass begins without either. At the end of a
    step only flags that the first passes changed are put back: another may have been set by a signal handler meanwhile.

    Args:
        before: holders with their contents before each first pass.
        weights_were_set: the first passes wrote to trainable weights themselves, as such an initialisation does.
        hooks_were_set: the first passes registered or took off hooks of the user's.
    """

    def __init__(self, before: Iterable[tuple[Holder, Content]], weights_were_set: bool, hooks_were_set: bool) -> None:
        self.at_end = False
        self.changed: dict[int, set[Any]] = {}
        self.set_once: set[int] = set()
        for holder, content in before:
            if not isinstance(holder, Names):
                continue
            changes = holder.changes(content)
            flags = [name for name, value, current in changes if _is_flag(value, current)]
            if flags:
                key = id(holder.target)
                self.changed.setdefault(key, set()).update(flags)
                created = not holder.is_librarys and (
                    hooks_were_set or any(v is MISSING or v is None for n, v, _ in changes if n not in flags)
                )
                new = all(value is MISSING for name, value, _ in changes if name in flags)
                alone = len(flags) == len(changes) and (holder.is_dict or bool(holder.skip) or new)
                if not created and (weights_were_set or alone or holder.is_librarys):
                    self.set_once.add(key)

    def for_the_end(self) -> Flags:
        """The same, for the end of the step."""
        flags = copy.copy(self)
        flags.at_end = True
        return flags

    def skips(self, holder: Names, name: Any, value: Any, current: Any) -> bool:
        if not _is_flag(value, current) or (name == _MODE and not self.at_end):
            return False
        key = id(holder.target)
        return name not in self.changed.get(key, ()) if self.at_end else key in self.set_once


def _is_flag(value: Any, current: Any) -> bool:
    kinds = {type(v) for v in (value, current) if v is not MISSING}
    return kinds == {bool}
