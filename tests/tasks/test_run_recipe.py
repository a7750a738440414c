"""Whole runs, kept tiny: what they leave behind, and that it can be used again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oldest import grey
from tiny_runs import training
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
)

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.models import build_config, load_image_processor
from hf_sharpness.tasks.recipe import Recipe, load_recipe
from hf_sharpness.tasks.run import prepare, run_recipe, train
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.tasks.splits import load_data

TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
}
FILES = {
    "all_results.json",
    "config.json",
    "curves.png",
    "eval_results.json",
    "model.safetensors",
    "recipe.yaml",
    "test_results.json",
    "train_results.json",
    "trainer_state.json",
}


def digits(output: Path, **changes) -> Recipe:
    pytest.importorskip("sklearn")
    data = DataSection(source="digits", train_samples=80, eval_samples=20, test_samples=40)
    return Recipe("image-classification", ModelSection(config=dict(TINY_VIT)), data, training(output, **changes))


@pytest.mark.parametrize("optim", ["adamw_torch", "sam", "wsam", "xsam"])
def test_image_run_leaves_a_usable_folder(tmp_path, capsys, optim):
    pytest.importorskip("matplotlib")
    recipe = digits(tmp_path, optim=optim)
    metrics = run_recipe(recipe)
    assert {path.name for path in tmp_path.iterdir()} >= FILES | {"preprocessor_config.json"}

    # What was reported is what the saved model says about the test images, prepared by transformers' own processor.
    pil = pytest.importorskip("PIL.Image")
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    test = load_data(recipe).test
    images = [grey(processor, pil.fromarray(image)) for image, _ in test]
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["test_accuracy"] == pytest.approx(np.mean(logits.argmax(-1).numpy() == test.labels))
    assert results["test_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor(test.labels)).item(), rel=1e-4
    )
    assert metrics["test_accuracy"] == results["test_accuracy"]
    assert {"eval_accuracy", "eval_macro_f1", "train_loss", "test_macro_f1"} <= results.keys()
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}
    assert f"{results['test_accuracy']:.4f}" in capsys.readouterr().out

    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert any("sharpness" in entry for entry in history) == (optim != "adamw_torch")


def test_the_resolved_recipe_repeats_the_run(tmp_path):
    metrics = run_recipe(digits(tmp_path / "a", optim="wsam", seed=3))
    again = load_recipe(tmp_path / "a" / "recipe.yaml")
    again.training["output_dir"] = str(tmp_path / "b")
    assert run_recipe(again)["test_loss"] == metrics["test_loss"]


@pytest.mark.parametrize("by_name", [True, False])
def test_resuming_equals_not_having_stopped(tmp_path, by_name):
    checkpoints = {"optim": "wsam", "save_strategy": "steps", "save_steps": 2}
    whole = run_recipe(digits(tmp_path / "whole", **checkpoints))
    resume = str(tmp_path / "whole" / "checkpoint-2") if by_name else "true"
    if not by_name:  # `true` takes the last checkpoint
        (tmp_path / "whole" / "checkpoint-4").rename(tmp_path / "later")
    resumed = run_recipe(digits(tmp_path / "whole", **checkpoints, resume_from_checkpoint=resume))
    assert resumed["test_loss"] == whole["test_loss"]
    state = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_the_best_model_is_loaded_back(tmp_path):
    """The last evaluation is of the smallest loss, or of the largest where that is the best: one is not the last."""
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    best |= {"metric_for_best_model": "loss", "max_steps": 8}
    for greater_is_better, choice in ((False, min), (True, max)):
        output = tmp_path / choice.__name__
        run_recipe(digits(output, greater_is_better=greater_is_better, **best))
        state = json.loads((output / "trainer_state.json").read_text())
        losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
        assert len(set(losses)) == 4
        assert json.loads((output / "eval_results.json").read_text())["eval_loss"] == choice(losses)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resume_from_checkpoint": "true"}, ["resume_from_checkpoint", "no checkpoint"]),
        ({"resume_from_checkpoint": "nowhere"}, ["resume_from_checkpoint", "'nowhere'"]),
        ({"wsam_gamma": 1.0}, ["wsam_gamma", "1.0"]),
        ({"eval_strategy": "sometimes"}, ["training", "sometimes"]),
        ({"lerning_rate": 1.0}, ["'lerning_rate'", "'learning_rate'"]),
        ({"max_steps": 10**30}, ["training.max_steps", "too large"]),
        ({"num_train_epochs": float("inf")}, ["training.num_train_epochs", "inf", "finite number"]),
        ({"seed": 2**40}, ["seed=1099511627776"]),
        ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size=0", "at least 1"]),
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps=0", "at least 1"]),
        ({"sam_target_modules": "nope"}, ["sam_target_modules='nope'", "matches no parameter", "norm and head"]),
        ({"optim_args": "momentum=.9, rho=.1"}, ["optim_args=", "no rho", "sam_rho"]),
        ({"optim": "wsm"}, ["optim='wsm'", "did you mean 'wsam'?"]),
        ({"optim": "asam"}, ["optim='asam'", "sam_adaptive=True"]),
        ({"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"cycles": 3}}, ["training", "cycles"]),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}, ["training"]),
        ({"lr_scheduler_kwargs": "{"}, ["training"]),
        ({"learning_rate": -1.0}, ["learning rate", "-1.0"]),
        ({"adam_beta1": 2.0}, ["beta", "2.0"]),
        ({"base_optim": "galore_adamw"}, ["training", "galore"]),
        ({"metric_for_best_model": "acuracy"}, ["metric_for_best_model", "'acuracy'", "'accuracy'"]),
    ],
)
def test_training_mistakes_are_one_clear_error(tmp_path, changes, words):
    with pytest.raises(RecipeError) as caught:
        run_recipe(digits(tmp_path, **{"optim": "wsam", **changes}))
    for word in words:
        assert word in str(caught.value)


def test_a_finished_run_is_not_overwritten(tmp_path, capsys):
    """A run that does not finish leaves no results of an earlier one behind, and takes its place only on request."""
    output = tmp_path / "out"
    checkpoints = {"save_strategy": "steps", "save_steps": 2}
    first = run_recipe(digits(output, **checkpoints))
    with pytest.raises(RecipeError, match="holds a finished run"):
        run_recipe(digits(output, max_steps=2))
    assert json.loads((output / "all_results.json").read_text())["test_loss"] == first["test_loss"]
    assert (output / "checkpoint-4").is_dir()

    class Stopped(Exception):
        pass

    def stop(*args, **kwargs):
        raise Stopped

    run = prepare(digits(output, max_steps=3, **checkpoints), overwrite=True)
    run.trainer.evaluate = stop  # at step 2, before the checkpoint
    with pytest.raises(Stopped):
        train(run)
    assert not list(output.glob("checkpoint-*"))
    assert not (output / "test_results.json").exists()
    assert not (output / "model.safetensors").exists()
    second = run_recipe(digits(output, max_steps=2))
    assert second["test_loss"] != first["test_loss"]


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = digits(tmp_path, max_steps=1, optim="xsam", seed=7)
    del recipe.training["output_dir"]
    recipe.origin = "some/where/mine.yaml"
    run_recipe(recipe)
    assert (tmp_path / "outputs" / "mine-xsam-seed7" / "test_results.json").is_file()


def test_a_configuration_of_which_no_model_can_be_made(tmp_path):
    recipe = digits(tmp_path)
    recipe.model.config["hidden_size"] = 2**40
    with pytest.raises(RecipeError, match=r"^model\.config: no model of type 'vit' can be made of it: "):
        run_recipe(recipe)


def test_a_pretrained_image_model_brings_its_processor(tmp_path):
    pytest.importorskip("PIL")
    run_recipe(digits(tmp_path / "first", max_steps=1))
    recipe = digits(tmp_path / "second", max_steps=1, optim="sam")
    recipe.model = ModelSection(name_or_path=str(tmp_path / "first"))
    run_recipe(recipe)
    assert load_image_processor(recipe.model).size == {"height": 8, "width": 8}
    assert (tmp_path / "second" / "preprocessor_config.json").is_file()


def test_a_vit_from_scratch_takes_its_image_size_from_the_data():
    data = load_data(digits(Path("unused")))
    config = build_config(ModelSection(), data, "vit", image_size=8, num_channels=1)
    assert (config.image_size, config.num_channels, config.num_labels) == (8, 1, 10)
    config = build_config(ModelSection(config={"image_size": 16}), data, "vit", image_size=8, num_channels=1)
    assert config.image_size == 16


def test_a_backbone_can_be_cut(tmp_path):
    """Its stages are its layers: those stored for the whole one would be refused."""
    from transformers import Dinov2Config

    Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2).save_pretrained(tmp_path)
    section = ModelSection(name_or_path=str(tmp_path), config={"num_hidden_layers": 2})
    config = build_config(section, load_data(digits(Path("unused"))), "vit")
    assert (config.num_hidden_layers, config.num_labels) == (2, 10)
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert config.out_features == ["stage2"]


METRIC = """
import datasets
import evaluate


class Errors(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="number of wrong predictions", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return {"errors": float(sum(p != r for p, r in zip(predictions, references)))}
"""


@pytest.mark.parametrize("name", ["errors", "errors/errors.py"], ids=["folder", "script"])
def test_a_metric_of_ones_own_needs_no_network(tmp_path, monkeypatch, name):
    """`metrics:` names a folder or a script for `evaluate`; the best model is chosen by it as by a built-in one."""
    pytest.importorskip("evaluate")
    pytest.importorskip("matplotlib")
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors" / "errors.py").write_text(METRIC)
    calls = []
    monkeypatch.setattr("socket.socket.connect", lambda *args: calls.append(args))
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: calls.append(args))
    best = {"load_best_model_at_end": True, "metric_for_best_model": "errors", "greater_is_better": False}
    recipe = digits(tmp_path / "out", save_strategy="steps", save_steps=2, **best)
    recipe.metrics = ["accuracy", str(tmp_path / name)]
    metrics = run_recipe(recipe)
    assert metrics["test_errors"] == pytest.approx(40 * (1 - metrics["test_accuracy"]))
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    errors = [entry["eval_errors"] for entry in state["log_history"] if "eval_errors" in entry]
    assert state["best_metric"] == min(errors)
    assert not calls


@pytest.mark.parametrize(
    ("start", "sharp", "words"), [(0.5, 2, "4 steps of 1 pass, 2 of them of 2 passes"), (0, 4, "4 steps of 2 passes")]
)
def test_a_run_says_which_of_its_steps_were_sharpness_aware(tmp_path, capsys, start, sharp, words):
    pytest.importorskip("matplotlib")
    run_recipe(digits(tmp_path, optim="sam", sam_start=start))
    out = capsys.readouterr().out
    assert words in out
    assert ("SAM (rho 0.05, sam_start 0.5)" in out) == (start == 0.5)
    card = (tmp_path / "README.md").read_text()
    assert ("2 of 4 optimizer steps were sharpness-aware" in card) == (sharp == 2)
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "sharpness" in entry] == ([4] if sharp == 2 else [2, 4])
