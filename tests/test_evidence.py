"""The scripts behind docs/evidence that are not `compare`: their functions, and that they run."""

from __future__ import annotations

import json
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


RUN = {"stage": "final", "measures": {"nll": 1.0, "train_loss": 0.4, "generalization_gap": 0.6, "sharpness": 0.02}}


def sweep(folder: Path, accuracies: dict[str, list[float]], arguments: dict[str, dict[str, Any]]) -> Path:
    """A results.json with as much as the scripts read."""
    arms = [{"name": name, "kind": "base" if name == "base" else "sharpness"} for name in accuracies]
    arms = [{**arm, "arguments": arguments.get(arm["name"], {"optim": "sgd"})} for arm in arms]
    runs = [
        {**RUN, "arm": name, "test": {"accuracy": value}, "seed": seed}
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    folder.mkdir()
    content = {"plan": {"metric": "accuracy", "arms": arms}, "runs": runs}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_curves_of_a_sweep(scripts: Any, tmp_path: Path) -> None:
    """Sharpness weighs gamma / (1 - gamma) in WSAM's objective, 1 in SAM's."""
    import sweep_curves

    arguments = {
        "coupled": {"optim": "wsam", "wsam_mode": "coupled", "wsam_gamma": 0.8, "sam_rho": 0.05},
        "sam-1": {"optim": "sam", "sam_rho": 0.1},
        "sam-2": {"optim": "sam", "sam_rho": 0.2},
        "late": {"optim": "sam", "sam_rho": 0.3, "sam_start": 0.5},
        "xsam-1": {"optim": "xsam", "sam_rho": 0.1, "sam_steps": 3},
        "xsam-2": {"optim": "xsam", "sam_rho": 0.2, "sam_steps": 3},
    }
    values = [0.5, 0.6, 0.7]
    folder = sweep(tmp_path / "study", dict.fromkeys(("base", *arguments), values), arguments)
    rows = {row.split(" | ")[0]: row.split(" | ")[1:] for row in sweep_curves.table(folder).splitlines()}
    assert rows["| coupled"] == ["60.0 ± 10.0", "1.00", "0.4", "0.6", "0.02", "0.08 |"]
    assert rows["| sam-1"][-1] == "0.02 |"
    assert rows["| base"][-1] == " |"
    lines = sweep_curves._lines(sweep_curves.points_of(folder), "sam_rho")
    assert {name: [point.name for point in line] for name, line in lines.items()} == {
        "sam": ["sam-1", "sam-2"],
        "xsam k = 3": ["xsam-1", "xsam-2"],
    }
    sweep_curves.picture([folder], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_range_test_beside_a_grid(scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import rho_rules

    arguments = {f"sam-{rho}": {"optim": "sam", "base_optim": "sgd", "sam_rho": rho} for rho in (0.01, 0.1)}
    accuracies = {"base": [0.5, 0.6], "sam-0.01": [0.5, 0.6], "sam-0.1": [0.8, 0.9]}
    folder = sweep(tmp_path / "grid", accuracies, arguments)
    # The step has changed by a quarter at rho .01 already, and the gradient has turned away at 1.
    points = [(0.01, 1.01, 0.9), (0.1, 1.1, 0.5), (1.0, 1.3, 0.1)]
    radii = [{"rho": rho, "loss": loss, "cosine": cosine, "gradient_norm": 1.0} for rho, loss, cosine in points]
    look = {"when": "after", "adaptive": False, "loss": 1.0, "gradient_norm": 1.0, "slope": 1.0, "length": 1.0}
    (tmp_path / "rho.json").write_text(json.dumps({"looks": [{**look, "weight_norm": 10.0, "radii": radii}]}))
    rho_rules.main([f"{tmp_path}={folder}"])
    printed = capsys.readouterr().out
    assert "| grid | 55.0 | 0.1: 85.0 | 0.1 | 0.01 .. 0.1 | yes |" in printed
    assert "within a factor 2 on all: cosine of g and g_s = 0.5, ||delta|| = 0.01 x ||w||" in printed
    assert r"| \|\|delta\|\| = 0.01 x \|\|w\|\| | 1 |" in printed


def test_the_size_of_a_term(scripts: Any, tmp_path: Path) -> None:
    """Runs that differ in their seed are one row."""
    import term_size

    training = "base_optim: sgd, optim_args: momentum=.9, learning_rate: 0.1, wsam_mode: decoupled, sam_rho: 0.05"
    for seed, loss, ratios in ((1, 0.5, [0.1, 0.2]), (2, float("nan"), [0.3, 0.4, 0.5])):
        run = tmp_path / str(seed)
        run.mkdir()
        recipe = f"model: {{model_type: vit}}\ndata: {{source: digits}}\ntraining: {{{training}, seed: {seed}}}\n"
        (run / "recipe.yaml").write_text(recipe)
        history = [*({"wsam_step_ratio": ratio} for ratio in ratios), {"loss": loss}]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    *_, row = term_size.table([tmp_path / "1", tmp_path / "2"]).splitlines()
    assert row == "| vit, digits | sgd (momentum=.9) | 0.1 | decoupled | 0.05 | 2 | 0.3 (0.14 - 0.46) | 1 |"
    (tmp_path / "1" / "trainer_state.json").write_text('{"log_history": []}')
    with pytest.raises(SystemExit, match="no wsam_step_ratio was logged"):
        term_size.table([tmp_path / "1"])


@pytest.mark.slow
def test_other_implementations_agree(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_optimizer")
    import agreement

    monkeypatch.setattr("sys.argv", ["agreement.py", "--output_dir", str(tmp_path)])
    agreement.main()
    rows = [line.split(" | ") for line in (tmp_path / "agreement.md").read_text().splitlines() if "AdamW" in line]
    assert len(rows) == 4
    assert all(float(row[2]) < 1e-8 for row in rows)
