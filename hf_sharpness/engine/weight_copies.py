"""What torch makes of weights and keeps for later passes, within a block that the user has opened around a step."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import parametrize


def forget_weight_copies() -> None:
    """Have the next pass make them of the weights as they are: autocast's casts, and parametrized weights.

    ``parametrize.cached()`` keeps the latter, with their graph, until its block ends; where they are is private.
    """
    torch.clear_autocast_cache()
    kept: dict[Any, Any] = parametrize._cache
    kept.clear()
