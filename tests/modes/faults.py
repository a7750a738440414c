"""What the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import Net, classification
from reference import Spec
from safetensors.torch import load_file
from specs_of_modes import METHODS
from torch import Tensor

by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
accumulations = pytest.mark.parametrize("accumulation", [1, 3])
ITEMS = classification(96, torch.float32)


def few_probes(spec: Spec) -> Spec:
    """XSAM with a grid of three points: the walks come past every kind of point, not 21 times past one."""
    settings = {"alpha_points": 3, "refresh": 1} if spec.method == "xsam" else {}
    return Spec(spec.name, spec.method, spec.settings | settings)


def calls(spec: Spec, accumulation: int) -> int:
    """Forward passes of one step."""
    return accumulation * (1 + spec.settings.get("steps", 1) + (3 if spec.method == "xsam" else 0))


def saved_weights(folder: Path) -> Tensor:
    state = load_file(folder / "model.safetensors")
    return torch.cat([state[name].reshape(-1) for name, _ in Net().named_parameters()])
