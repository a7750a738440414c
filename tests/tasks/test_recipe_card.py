"""The model card that every run of a recipe leaves: what it says is what was done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_sharpness.tasks.recipe import Recipe
from hf_sharpness.tasks.run import run_recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.training.card import TAG

TINY_VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def run(folder: Path, model: ModelSection | None = None, data: DataSection | None = None, **training) -> ModelCard:
    pytest.importorskip("sklearn")
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    recipe = Recipe(
        "image-classification",
        model or ModelSection(config={**TINY_VIT, "patch_size": 4}),
        data or DataSection("digits", train_samples=40, eval_samples=20, test_samples=30, label_noise=0.4),
        {"output_dir": str(folder), "logging_steps": 1, "seed": 5, **options, **training},
        origin="tiny.yaml",
    )
    run_recipe(recipe)
    card = ModelCard.load(folder / "README.md")
    card.validate = None  # would ask the Hub
    return card


@pytest.mark.parametrize("optim", ["wsam", "adamw_torch"])
def test_a_model_from_scratch(tmp_path, optim):
    card = run(tmp_path, optim=optim, **({"sam_rho": 0.07} if optim == "wsam" else {}))
    results = json.loads((tmp_path / "test_results.json").read_text())
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        name: results[f"test_{name}"] for name in ("accuracy", "loss", "macro_f1")
    }
    assert {(r.task_type, r.dataset_type, r.dataset_split) for r in card.data.eval_results} == {
        ("image-classification", "digits", "test")
    }
    assert card.data.model_name == "tiny"
    assert card.data.pipeline_tag == "image-classification"
    assert "base_model" not in card.data.to_dict()
    text = card.text
    for words in (
        "trained from scratch",
        "scikit-learn's digits",
        "40 examples for training, 20 for evaluation and 30 for the test",
        "40% of the training labels were made wrong",
        f"| accuracy | {results['test_accuracy']:.4f} |",
        "(curves.png)",
        "- seed: 5",
        "hf-sharpness train recipe.yaml",
        "- Transformers 5.",
        "- hf_sharpness ",
    ):
        assert words in text
    assert "More information needed" not in text
    sharp = optim == "wsam"
    assert ({TAG, "wsam"} <= set(card.data.tags)) == sharp
    assert ("WSAM (rho 0.07" in text) == sharp
    assert ("- sharpness: " in text) == sharp
    assert ("adamw_torch" in text.partition("optimizer: ")[2].partition("\n")[0]) or sharp


def test_a_fine_tuned_model_and_local_files_keep_their_paths_to_themselves(tmp_path):
    pytest.importorskip("PIL")
    run(tmp_path / "first")
    card = run(tmp_path / "secret-place", model=ModelSection(name_or_path=str(tmp_path / "first")), optim="sam")
    assert "fine-tuned from a local model" in card.text
    assert str(tmp_path) not in card.text
    assert "base_model" not in card.data.to_dict()


def test_the_command_of_the_card_makes_the_model_again(tmp_path, monkeypatch):
    run(tmp_path / "first", optim="wsam")
    monkeypatch.chdir(tmp_path / "first")
    from hf_sharpness import cli

    flags = ["--use_cpu", "--report_to", "none", "--output_dir", "again"]
    assert cli.main(["train", "recipe.yaml", *flags]) == 0
    first, again = (json.loads(Path(folder, "test_results.json").read_text()) for folder in (".", "again"))
    assert first["test_loss"] == again["test_loss"]
