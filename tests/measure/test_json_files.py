"""Results as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from hf_sharpness.measure import json_files


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = json_files.write(
        {"a": [math.nan, 1.0], "b": {"c": np.inf}, "d": (np.float64(2.0), None)}, tmp_path / "x" / "y.json"
    )
    assert json.loads(path.read_text()) == {"a": [None, 1.0], "b": {"c": None}, "d": [2.0, None]}
    assert [p.name for p in path.parent.iterdir()] == ["y.json"]
