"""`--hessian`, `--pictures` and `--to` of the command line: what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_sharpness.cli import main
from hf_sharpness.measure.on_request import PICTURES
from hf_sharpness.tasks.recipe import Recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection

pytest.importorskip("sklearn")


def vit(seed: int, layers: int = 1) -> ViTForImageClassification:
    torch.manual_seed(seed)
    size = {"hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(**size, patch_size=8, image_size=8, num_channels=1, num_labels=10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("requests")
    for name, model in (("a", vit(0)), ("b", vit(1)), ("deeper", vit(0, layers=2))):
        model.save_pretrained(folder / name)
    data = DataSection(source="digits", train_samples=40, eval_samples=10, test_samples=20)
    recipe = Recipe("image-classification", ModelSection(), data, {"per_device_eval_batch_size": 64})
    recipe.save(folder / "recipe.yaml")
    return folder


def measured(folder: Path, output: Path, *arguments: str) -> dict[str, Any]:
    quick = ["--rho", "none", "--adaptive_rho", "none", "--worst_rho", "none", "--data", str(folder / "recipe.yaml")]
    assert main(["measure", str(folder / "a"), *quick, "--output_dir", str(output), *arguments]) == 0
    return json.loads((output / "measure.json").read_text())


def test_the_hessian_is_in_table_and_file(folder: Path, tmp_path: Path, capsys: Any) -> None:
    found = measured(folder, tmp_path, "--hessian", "2", "--probes", "3", "--dtype", "float64")["hessian"]
    values = found["eigenvalues"]
    assert values[0] >= values[1]
    assert max(found["residuals"]) < 0.01 * values[0]
    assert found["trace"]["probes"] == 3
    printed = capsys.readouterr().out
    assert "eigenvalue 2" in printed
    assert f"{found['trace']['standard_error']:.4f}" in printed


def test_all_pictures_are_drawn(folder: Path, tmp_path: Path) -> None:
    """Each is a picture with something in it, and its numbers are in the file."""
    image = pytest.importorskip("PIL.Image")
    results = measured(folder, tmp_path, "--pictures", "all", "--resolution", "5", "--to", str(folder / "b"))
    found = results["pictures"]
    assert list(found) == [*PICTURES, "path"]
    for name in found:
        pixels = np.asarray(image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.std() > 5
    middle = results["loss"]["train"]["loss"]
    assert found["line"]["losses"][0][2] == pytest.approx(middle, rel=1e-5)
    assert found["surface"]["losses"][2][2] == pytest.approx(middle, rel=1e-5)
    assert found["sam"]["losses"][2][2] == pytest.approx(middle, rel=1e-5)
    assert found["cosine"]["steps"] == list(range(9))


def test_the_path_ends_at_the_other_model(folder: Path, tmp_path: Path) -> None:
    there = measured(folder, tmp_path / "1", "--to", str(folder / "b"), "--resolution", "7")["pictures"]["path"]
    recipe = ["--data", str(folder / "recipe.yaml"), "--rho", "none", "--adaptive_rho", "none", "--worst_rho", "none"]
    assert main(["measure", str(folder / "b"), *recipe, "--output_dir", str(tmp_path / "2")]) == 0
    other = json.loads((tmp_path / "2" / "measure.json").read_text())["loss"]
    assert there["positions"][5] == 1.0
    for split in ("train", "test"):
        assert there["losses"][split][5] == pytest.approx(other[split]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pictures", "photo"], "photo"),
        (["--hessian", "-1"], "--hessian -1"),
        (["--probes", "0"], "--probes 0"),
        (["--resolution", "1"], "--resolution 1"),
        (["--picture_rho", "0"], "--picture_rho 0"),
        (["--to", "deeper"], "has other weights"),
        (["--to", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, arguments: list[str], words: str, capsys: Any) -> None:
    filled = [str(folder / a) if a in ("deeper", "nowhere") else a for a in arguments]
    given = [str(folder / "a"), "--data", str(folder / "recipe.yaml"), "--output_dir", str(tmp_path), *filled]
    assert main(["measure", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert words in error
