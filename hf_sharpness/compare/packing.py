"""Arrays as text in `results.json`: class ids and losses of every test example, small enough to be committed."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np


def pack(classes: np.ndarray) -> str:
    """Class ids as text: base64 of little-endian 16-bit numbers."""
    return base64.b64encode(np.asarray(classes, dtype="<u2").tobytes()).decode("ascii")


def unpack(text: str) -> np.ndarray:
    """The class ids that `pack` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype="<u2").astype(np.int64)


def pack_floats(values: np.ndarray) -> str:
    """Numbers as text: base64 of little-endian float32."""
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode("ascii")


def unpack_floats(text: str) -> np.ndarray:
    """The numbers that `pack_floats` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)


def number(value: Any) -> float | None:
    """A float for JSON, which has no NaN and no infinity: None for those."""
    value = float(value)
    return round(value, 6) if math.isfinite(value) else None
