"""Walks the Python objects that a pass can reach: everything within bounds from model, loss and trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from . import bounds
from .holders import SomeNames
from .paths import Root
from .quiet import QuietModules
from .reached import Reached
from .walk import Walk


def reach(
    roots: Iterable[Root],
    is_weight: Callable[[Any], bool],
    binds_weights: bool,
    quiet: QuietModules,
    changing: Collection[int] | None = (),
) -> Reached:
    """Walk from the roots, the nearest objects first.

    What quiet modules hold is in ``quiet`` instead of in the result.

    Args:
        roots: where to begin.
        is_weight: says of a parameter, or a NumPy array, whether it is moved and put back as one of the weights.
        binds_weights: whether something else than the user's code binds other tensors to the names of parameters
            (FSDP2, ZeRO-3), so that those names are left alone.
        quiet: what the walk before this one knew of quiet modules; it is renewed if they have changed.
        changing: ids of those long lists and dicts whose elements are noted; None for all of them.
    """
    walk = Walk(is_weight, binds_weights, quiet, changing)
    if quiet.are_unchanged():
        walk.seen |= quiet.ids
        others, quiet.others, quiet.is_complete = quiet.others, [], False
        for module, path in others:
            walk.put(module, path)
    else:
        quiet.clear()
    for root in roots:
        if root.skip:
            walk.skips[id(root.value)] = root.skip
        walk.put(root.value, (None, root.name))
    for visit, value, path in walk.queue:  # grows meanwhile; holds on to every object, so that no id is used twice
        getattr(walk, visit)(value, path)
    for variables, names in walk.variables.values():
        kept = [name for name in names if not isinstance(variables.get(name), bounds.NO_VARIABLES)]
        walk.reached.holders.append(SomeNames(variables, kept))
    quiet.is_complete = True
    return walk.reached
