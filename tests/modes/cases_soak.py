"""Long runs on two gloo ranks."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from launch import case
from specs_of_modes import SCOPED
from steps_on_ranks import drifted


@case(*[spec.name for spec in SCOPED])
def two_hundred(directory: Path, name: str) -> torch.Tensor:
    return drifted(name, 200)


@case("global-sam", "global-wsam-coupled", "global-wsam-decoupled", "global-xsam", "device-wsam-coupled")
def two_thousand(directory: Path, name: str) -> tuple[torch.Tensor, int]:
    """The weights, and by how many bytes this process grew over the last three quarters of the run."""
    drifted(name, 500)
    before = psutil.Process().memory_info().rss
    weights = drifted(name, 2000)
    return weights, psutil.Process().memory_info().rss - before
