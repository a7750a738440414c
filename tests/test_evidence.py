"""The scripts behind docs/evidence that are not `compare`: their functions, and that they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_function_with_two_minima(scripts: Any) -> None:
    """The paper's minima, .28 at (-16.8, 12.8) and .36 at (19.8, 29.9) (arXiv 2305.15817), and a saddle between."""
    import toy

    for place, height in (("the sharp minimum", 0.28), ("the flat minimum", 0.36), ("the saddle between", 0.40)):
        at = np.array(toy._PLACES[place])
        assert float(toy.two_minima(torch.tensor(at))) == pytest.approx(height, abs=6e-3)
        assert np.linalg.norm(toy.gradient(toy.two_minima, at)) < 2e-3
    curvature = np.linalg.eigvalsh(torch.autograd.functional.hessian(toy.two_minima, torch.tensor(at)).numpy())
    assert curvature[0] < 0 < curvature[1]


def test_a_descent_is_the_closed_form(scripts: Any) -> None:
    import toy

    path = toy.descend(toy.bowl, (1.0, 1.0), None, lr=0.05, steps=3)
    assert path == pytest.approx(np.array([[0.95**k, 0.5**k] for k in range(4)]))
    path = toy.descend(toy.bowl, (3.0, 0.4), lambda m, o: toy.SAM(m, o, rho=0.5), lr=0.1, steps=1)
    assert path[1] == pytest.approx([3 - 0.1 * 3.3, 0.4 - 0.1 * 10 * 0.8])  # g = (3, 4), moved by .5 (.6, .8)


def test_a_rank_correlation(scripts: Any) -> None:
    import sharpness_and_gap

    runs = [{"arm": str(n // 2), "sharpness": n**2, "metric": -n} for n in range(10)]
    assert sharpness_and_gap.correlation(runs, "sharpness", "metric", draws=50)[0] == pytest.approx(-1.0)


@pytest.mark.slow
def test_other_implementations_agree(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_optimizer")
    import agreement

    monkeypatch.setattr("sys.argv", ["agreement.py", "--output_dir", str(tmp_path)])
    agreement.main()
    rows = [line.split(" | ") for line in (tmp_path / "agreement.md").read_text().splitlines() if "AdamW" in line]
    assert len(rows) == 4
    assert all(float(row[2]) < 1e-8 for row in rows)
