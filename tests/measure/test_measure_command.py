"""`hf-sharpness measure` on folders of every kind: what it prints and writes, and how it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

from hf_sharpness.cli import main
from hf_sharpness.measure import cli
from hf_sharpness.tasks.pixels import Pixels
from hf_sharpness.tasks.recipe import Recipe, load_recipe
from hf_sharpness.tasks.run import run_recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection, PeftSection
from hf_sharpness.tasks.splits import load_data

pytest.importorskip("sklearn")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "image_size": 8,
    "num_channels": 1,
}
DATA = {"source": "digits", "train_samples": 80, "eval_samples": 20, "test_samples": 40}
QUICK = ["--rho", ".1", "--adaptive_rho", "none", "--worst_rho", "none"]


def vit(dtype: torch.dtype = torch.float32) -> ViTForImageClassification:
    torch.manual_seed(0)
    labels = {index: str(index) for index in range(10)}
    return ViTForImageClassification(ViTConfig(**SIZES, id2label=labels, hidden_dropout_prob=0.3)).to(dtype)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "digits.yaml"
    Recipe("image-classification", ModelSection(), DataSection(**DATA), {"per_device_eval_batch_size": 16}).save(path)
    return path


def measured(folder: Path, *arguments: Any) -> dict[str, Any]:
    output = folder.parent / f"{folder.name}-measured"
    assert main(["measure", str(folder), "--output_dir", str(output), *map(str, arguments)]) == 0
    return json.loads((output / "measure.json").read_text())


def reference(model: torch.nn.Module, recipe: Path, split: str = "train") -> tuple[float, float]:
    """Loss and error over a whole split, by the model itself in one batch."""
    examples = getattr(load_data(load_recipe(recipe)), split)
    pixels = Pixels(8, 1)
    images = torch.stack([pixels(image) for image, _ in examples])
    with torch.no_grad():
        logits = model.eval().float()(pixel_values=images).logits
    labels = torch.tensor(examples.labels)
    return F.cross_entropy(logits, labels).item(), float((logits.argmax(-1) != labels).double().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_save_pretrained(tmp_path: Path, recipe: Path, dtype: torch.dtype, capsys: Any) -> None:
    """Also one stored in bfloat16 is computed in float32."""
    model = vit(dtype)
    model.save_pretrained(tmp_path / "m")
    found = measured(tmp_path / "m", "--data", recipe, "--rho", ".01,.1", "--worst_steps", 2)
    for split in ("train", "eval", "test"):
        loss, error = reference(model, recipe, split)
        assert found["loss"][split]["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["loss"][split]["error"] == pytest.approx(error)
    train, test = found["loss"]["train"], found["loss"]["test"]
    assert found["generalization_gap"]["loss"] == test["loss"] - train["loss"]
    assert found["about"]["dtype"] == "float32"
    assert found["about"]["perturbed_parameters"] == found["about"]["parameters"] == model.num_parameters()
    assert found["weight_norm"] == pytest.approx(
        float(torch.cat([p.detach().float().flatten() for p in model.parameters()]).double().norm()), rel=1e-5
    )
    small = found["sharpness"][0]
    assert small["linear"] == pytest.approx(0.01 * found["gradient_norm"], rel=1e-6)
    assert small["loss"] - train["loss"] == pytest.approx(small["linear"], rel=0.2)
    assert len(found["adaptive_sharpness"]) == 6
    assert found["worst_loss"][0]["loss"] >= train["loss"]
    assert {"gradient", "adamw"} == found["critical_sharpness"].keys()
    printed = capsys.readouterr().out
    assert "80 training examples" in printed
    assert f"{train['loss']:.4f}" in printed
    assert "dropout off" in printed


@pytest.mark.parametrize("optim", ["adamw_torch", "wsam"])
def test_a_folder_of_train_names_its_own_data(tmp_path: Path, optim: str) -> None:
    made = Recipe(
        "image-classification",
        ModelSection(config={k: v for k, v in SIZES.items() if k not in ("image_size", "num_channels")}),
        DataSection(**DATA, label_noise=0.2),
        {
            "output_dir": str(tmp_path / "run"),
            "optim": optim,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 2,
        },
    )
    test = run_recipe(made)
    found = measured(tmp_path / "run", *QUICK, "--examples", "all")
    assert found["loss"]["test"]["loss"] == pytest.approx(test["test_loss"], rel=1e-4)
    assert 1 - found["loss"]["test"]["error"] == pytest.approx(test["test_accuracy"])
    assert "adaptive_sharpness" not in found
    assert "worst_loss" not in found


def test_an_adapter_is_perturbed_alone(tmp_path: Path, recipe: Path) -> None:
    peft = pytest.importorskip("peft")
    base = vit()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    config = peft.LoraConfig(target_modules="all-linear", r=2, modules_to_save=["classifier"], init_lora_weights=False)
    adapted = peft.get_peft_model(ViTForImageClassification.from_pretrained(tmp_path / "base"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    with_adapters = dataclasses.replace(load_recipe(recipe), peft=PeftSection())
    with_adapters.save(tmp_path / "lora.yaml")
    found = measured(tmp_path / "adapter", "--data", tmp_path / "lora.yaml", *QUICK)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert found["about"]["perturbed_parameters"] == trainable < found["about"]["parameters"] / 2
    assert found["loss"]["train"]["loss"] == pytest.approx(reference(adapted, recipe)[0], rel=1e-5)


def test_other_data_give_the_relative_form(tmp_path: Path, recipe: Path) -> None:
    """The other data are the same but for the noise in their labels; with the very same both directions agree."""
    vit().save_pretrained(tmp_path / "m")
    other = load_recipe(recipe)
    other.data.label_noise = 0.5
    other.save(tmp_path / "noisy.yaml")
    same = measured(tmp_path / "m", "--data", recipe, *QUICK, "--other_data", recipe, "--dtype", "float64")
    for direction in ("of_data_along_other", "of_other_along_data"):
        for kind in ("gradient", "adamw"):
            found = same["relative_critical_sharpness"][direction][kind]["sharpness"]
            assert found == pytest.approx(same["critical_sharpness"][kind]["sharpness"], rel=1e-9)
    noisy = measured(tmp_path / "m", "--data", recipe, *QUICK, "--other_data", tmp_path / "noisy.yaml")
    relative = noisy["relative_critical_sharpness"]
    assert relative["other_data"] == "noisy"
    assert relative["of_data_along_other"] != relative["of_other_along_data"]


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    vit().save_pretrained(tmp_path / "m")

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sharpness.measure.cheap.critical_sharpness", interrupted)
    output = tmp_path / "out"
    assert main(["measure", str(tmp_path / "m"), "--data", str(recipe), "--output_dir", str(output)]) == cli.INTERRUPTED
    found = json.loads((output / "measure.json").read_text())
    assert found["interrupted"] is True
    assert {"loss", "generalization_gap", "sharpness", "adaptive_sharpness"} <= found.keys()
    assert "critical_sharpness" not in found
    assert "stopped" in capsys.readouterr().out


def test_one_batch_is_in_memory_at_a_time(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are made when their batch comes, and none is kept."""
    import gc
    import weakref

    vit().save_pretrained(tmp_path / "m")
    alive: list[Any] = []
    most = 0
    call = Pixels.__call__

    def counted(self: Any, image: Any) -> Any:
        nonlocal most
        pixels = call(self, image)
        alive.append(weakref.ref(pixels))
        most = max(most, sum(reference() is not None for reference in alive))
        return pixels

    monkeypatch.setattr(Pixels, "__call__", counted)
    measured(tmp_path / "m", "--data", recipe, *QUICK, "--batch_size", 4)
    gc.collect()
    assert 0 < most <= 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["MODEL"]),
        (["{m}"], ["holds no recipe.yaml", "--data RECIPE"]),
        (["nowhere"], ["'nowhere' is no folder", "--data RECIPE"]),
        (["digits-vit"], ["'digits-vit' is no folder", "train it first"]),
        (["nowhere/at/all", "--data", "{recipe}"], ["nowhere/at/all", "cannot be loaded"]),
        (["{m}", "--data", "{recipe}", "--rho", "0,1"], ["--rho", "0,1", "positive"]),
        (["{m}", "--data", "{recipe}", "--rho", "x"], ["--rho", "x", ".01,.05"]),
        (["{m}", "--data", "{recipe}", "--examples", "0"], ["--examples", "at least 1"]),
        (["{m}", "--data", "{recipe}", "--worst_steps", "-1"], ["--worst_steps -1", "at least 0"]),
        (["{m}", "--data", "{recipe}", "--device", "cuda:77"], ["--device cuda:77"]),
        (["{m}", "--data", "{recipe}", "--data.source", "mars"], ["mars"]),
        (["{m}", "--data", "{recipe}", "--other_data", "trec-minilm"], ["trec-minilm", "sequence-classification"]),
        (["{m}", "--data", "nothing"], ["nothing", "no such file"]),
        (["{m}", "--data", "{recipe}", "--rhoo", "1"], ["--rhoo"]),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, recipe: Path, arguments: list[str], words: list[str], capsys: Any
) -> None:
    vit().save_pretrained(tmp_path / "m")
    filled = [argument.format(m=tmp_path / "m", recipe=recipe) for argument in arguments]
    assert main(["measure", *filled]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error


def test_classes_in_another_order_are_refused(tmp_path: Path, recipe: Path, capsys: Any) -> None:
    model = vit()
    model.config.id2label = {index: str(9 - index) for index in range(10)}
    model.save_pretrained(tmp_path / "m")
    assert main(["measure", str(tmp_path / "m"), "--data", str(recipe)]) == 2
    assert "numbers its classes 9, 8" in capsys.readouterr().err


def test_help_names_every_flag(capsys: Any) -> None:
    assert main(["measure", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--data", "--rho", "--worst_rho", "--other_data", "docs/measure.md"))


def test_what_is_no_number_is_written_as_null(tmp_path: Path, recipe: Path) -> None:
    """What is written holds plain numbers, and null where a loss is none."""
    model = vit()
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "m")
    found = measured(tmp_path / "m", "--data", recipe, *QUICK)
    assert found["loss"]["train"]["loss"] is None
    assert found["critical_sharpness"]["gradient"]["sharpness"] is None
    assert np.isfinite(found["loss"]["train"]["error"])
