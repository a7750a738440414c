"""What code keeps on the weights and in the base optimizer's settings: ``p.importance``, ``group["lr"] *= .9``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from .paths import Root

if TYPE_CHECKING:
    from ..weights import Weights

_PARAMS = frozenset({"params"})


def kept_on(parameters: Iterable[nn.Parameter], weights: Weights, whole: bool) -> list[Root]:
    """The settings of the base optimizer's groups, and the attributes of the weights that have any.

    What libraries mark weights with (``_is_hf_initialized``) is left alone, and all attributes are where a library
    binds other tensors to the names of parameters (FSDP2, ZeRO-3).

    Args:
        parameters: the weights.
        weights: where they are.
        whole: look at all weights, as a pass may give them the first attribute.
    """
    found = [Root(f"param group {index}", group, _PARAMS) for index, group in enumerate(weights.optimizer.param_groups)]
    if weights.binds_weights:
        return found
    for index, parameter in enumerate(parameters):
        own = vars(parameter)
        private = frozenset(name for name in own if name.startswith("_")) if own else frozenset()
        if whole or len(private) < len(own):
            found.append(Root(f"weight {index}", own, private))
    return found
