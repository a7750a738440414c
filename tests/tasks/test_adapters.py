"""The section `peft` of a recipe: LoRA adapters are what is trained, saved and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Record
from models.saved import save_bert
from transformers import AutoModelForSequenceClassification

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.prepare import build_task, prepare
from hf_sharpness.tasks.recipe import Recipe, load_recipe, override
from hf_sharpness.tasks.run import run_recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection, PeftSection
from hf_sharpness.tasks.shared import check_shared_recipe
from hf_sharpness.tasks.splits import load_data

peft = pytest.importorskip("peft")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    pytest.importorskip("datasets")
    save_bert(tmp_path / "bert")
    rows = [f"{'very ' * (n % 3)}{['bad', 'good'][n % 2]} film,{['neg', 'pos'][n % 2]}" for n in range(60)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    training = {"optim": "sam", "sam_rho": 0.05, "max_steps": 3, "learning_rate": 0.01, "use_cpu": True, "seed": 0}
    quiet = {"report_to": "none", "disable_tqdm": True, "output_dir": str(tmp_path / "out")}
    data = DataSection(source="csv", data_files=str(tmp_path / "reviews.csv"))
    model = ModelSection(name_or_path=str(tmp_path / "bert"))
    section = PeftSection(r=2, alpha=6.0, target_modules=["query", "value"])
    return Recipe("sequence-classification", model, data, {**training, **quiet}, peft=section)


def test_adapters_and_head_are_trained_and_saved(recipe: Recipe, tmp_path: Path) -> None:
    """The folder's adapters, on the model that the recipe names, predict as the trained model does."""
    run = prepare(recipe)
    before = {name: p.detach().clone() for name, p in run.task.model.named_parameters()}
    trained = {name for name, p in run.task.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or "modules_to_save" in name for name in trained)
    assert sum(".lora_" in name for name in trained) == 4  # A and B, of query and value, in one layer
    metrics = run_recipe(recipe, overwrite=True)
    assert metrics["test_loss"] > 0

    out = tmp_path / "out"
    assert not (out / "model.safetensors").exists()
    base = AutoModelForSequenceClassification.from_pretrained(recipe.model.name_or_path)
    loaded = peft.PeftModel.from_pretrained(base, out).eval()
    again = dict(loaded.named_parameters())
    moved = {name for name, p in before.items() if not torch.equal(p, again[name])}
    assert moved == trained
    layer = loaded.base_model.model.bert.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == 3.0  # alpha / r
    assert "sam_rho" in json.loads((out / "sharpness_config.json").read_text())
    assert load_recipe(out / "recipe.yaml").peft == recipe.peft


def test_what_is_perturbed_is_the_adapters(recipe: Recipe) -> None:
    """In a replay all other weights are what they were."""
    run = prepare(recipe)
    model, seen = run.task.model, Record()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    copies = [p.detach().clone() for p in frozen]
    free = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in free]

    def look(*_: Any) -> None:
        assert all(torch.equal(p, copy) for p, copy in zip(frozen, copies, strict=True))
        seen.items.append(
            torch.cat([(p.detach() - s).reshape(-1) for p, s in zip(free, start, strict=True)]).norm().item()
        )

    handle = model.register_forward_pre_hook(look)
    run.trainer.args.max_steps = 1
    run.trainer.train()
    handle.remove()
    assert max(seen.items) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("modules", [None, ["all-linear"]])
def test_modules_may_be_left_to_the_library(recipe: Recipe, modules: Any) -> None:
    recipe.peft = PeftSection(target_modules=modules)
    names = {n.rpartition(".lora_A")[0] for n, _ in build_task(recipe, load_data(recipe)).model.named_parameters()}
    layers = {name.rpartition(".")[2] for name in names if name}
    assert {"query", "value"} <= layers
    assert ("key" in layers) == (modules is not None)


def test_modules_that_the_model_has_not_are_named(recipe: Recipe) -> None:
    recipe.peft = PeftSection(target_modules=["q_proj"])
    with pytest.raises(RecipeError, match=r"peft\.target_modules: q_proj: .* such as query, key, value"):
        build_task(recipe, load_data(recipe))


def test_an_image_model_keeps_its_new_head() -> None:
    pytest.importorskip("sklearn")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 2}
    section = PeftSection(target_modules=["all-linear"])
    image = Recipe("image-classification", ModelSection(config=size), DataSection("digits"), {}, peft=section)
    names = [n for n, p in build_task(image, load_data(image)).model.named_parameters() if p.requires_grad]
    assert any("classifier.modules_to_save" in name for name in names)


def test_without_the_library_the_error_names_it(recipe: Recipe, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RecipeError, match=r"recipe: peft: the package peft is not installed: `pip install"):
        build_task(recipe, load_data(recipe))


BASE = "task: image-classification\ndata: {source: digits}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("peft: {rank: 4}", "unknown key 'rank' in section peft"),
        ("peft: {r: 0}", "peft.r: 0 is not valid"),
        ("peft: {dropout: 1.0}", "peft.dropout: 1.0 is not valid"),
        ("peft: {target_modules: '.*'}", "peft.target_modules: '.*' is not valid"),
        ("peft: {target_modules: ['(a+)+$']}", "peft.target_modules[0]"),
        ("peft: {target_modules: []}", "peft.target_modules"),
        ("peft: 8", "peft: 8 is not valid: must be a mapping"),
    ],
)
def test_mistakes_are_named(text: str, problem: str, tmp_path: Path) -> None:
    """A text would be a regular expression to peft."""
    (tmp_path / "x.yaml").write_text(BASE + text + "\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "x.yaml")
    assert problem in str(error.value)


def test_it_may_be_empty_and_set_by_flags(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(BASE + "peft: {}\n")
    recipe = load_recipe(tmp_path / "x.yaml")
    assert recipe.peft == PeftSection()
    override(recipe, "peft.r", "4")
    (tmp_path / "y.yaml").write_text(BASE)
    plain = load_recipe(tmp_path / "y.yaml")
    assert plain.peft is None
    override(plain, "peft.target_modules", "[query]")
    assert (recipe.peft.r, plain.peft) == (4, PeftSection(target_modules=["query"]))
    recipe.save(tmp_path / "z.yaml")
    assert load_recipe(tmp_path / "z.yaml").peft == recipe.peft


def test_a_shared_recipe_has_a_bound_on_the_rank() -> None:
    check_shared_recipe({"peft": {"r": 256, "target_modules": ["query"]}}, "user/repo")
    with pytest.raises(RecipeError, match=r"user/repo: peft\.r: 257 is too large for a shared recipe"):
        check_shared_recipe({"peft": {"r": 257}}, "user/repo")
