"""Unmodified scripts in every pattern of the official examples: as they are, and with sharpness-aware steps."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import COMMON, Launch

SHARPNESS_FLAGS = ("--sam_rho", "--wsam_gamma", "--xsam_refresh", "--base_optim", "--sharpness_config")


def arguments_of(script: str, assets: Path) -> dict[str, Any]:
    data, models = assets / "data", assets / "models"
    return {
        "text_classification.py": {
            "model_name_or_path": models / "bert",
            "train_file": data / "train.csv",
            "validation_file": data / "validation.csv",
            "do_train": True,
            "do_eval": True,
            "do_predict": True,
        },
        "question_answering.py": {
            "model_name_or_path": models / "bert",
            "train_file": data / "train-qa.json",
            "validation_file": data / "validation-qa.json",
            "test_file": data / "validation-qa.json",
            "do_train": True,
            "do_eval": True,
            "do_predict": True,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "exact_match",
        },
        "summarization.py": {
            "model_name_or_path": models / "bart",
            "train_file": data / "train-summaries.json",
            "validation_file": data / "validation-summaries.json",
            "do_train": True,
            "do_eval": True,
            "do_predict": True,
            "predict_with_generate": True,
        },
        "translation.py": {
            "model_name_or_path": models / "bart",
            "train_file": data / "train-translations.json",
            "validation_file": data / "validation-translations.json",
            "test_file": data / "validation-translations.json",
            "source_lang": "en",
            "target_lang": "ro",
            "source_prefix": "translate : ",
            "forced_bos_token": "[BOS]",
            "do_train": True,
            "do_eval": True,
            "do_predict": True,
            "predict_with_generate": True,
            "num_beams": 2,
            "max_train_samples": 30,
            "max_eval_samples": 6,
            "max_predict_samples": 4,
            "label_smoothing_factor": 0.1,
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
        "image_classification.py": {
            "model_name_or_path": models / "vit",
            "train_dir": data / "images" / "train",
            "max_train_samples": 20,
            "ignore_mismatched_sizes": True,
            "remove_unused_columns": False,
        },
        "language_modeling.py": {"model_name_or_path": models / "llama", "train_file": data / "train.txt"},
        "masked_language_modeling.py": {
            "model_name_or_path": models / "bert",
            "train_file": data / "train.txt",
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_first_step": True,
            "logging_steps": 3,  # evaluation comes between two logs
        },
        "named_entities.py": {
            "model_name_or_path": models / "bert",
            "train_file": data / "train-tags.json",
            "validation_file": data / "validation-tags.json",
            "test_file": data / "validation-tags.json",
            "do_train": True,
            "do_eval": True,
            "do_predict": True,
        },
        "token_classification.py": {"model_name_or_path": models / "bert", "train_file": data / "train-tags.json"},
    }[script]


SCRIPTS = (
    "text_classification.py",
    "question_answering.py",
    "summarization.py",
    "translation.py",
    "image_classification.py",
    "language_modeling.py",
    "masked_language_modeling.py",
    "named_entities.py",
    "token_classification.py",
)


@pytest.mark.usually("language_modeling|classification")
@pytest.mark.parametrize("script", SCRIPTS)
def test_script(script: str, assets: Path, launch: Launch) -> None:
    """With a stock optimizer all is bit for bit the plain script's; with wsam it runs, logs sharpness, and differs."""
    arguments = arguments_of(script, assets)
    plain = launch(script, plain=True, output="plain", **arguments)
    stock = launch(script, output="stock", **arguments)
    wsam = launch(script, output="wsam", optim="wsam", sam_rho=0.1, **arguments)

    for run in plain, stock, wsam:
        assert run.status == 0, run.log
        assert {p.name for p in run.output.iterdir()} >= {p.name for p in plain.output.iterdir()}
    assert stock.weights == plain.weights
    assert stock.weights != wsam.weights
    for results in plain.output.glob("*_results.json"):
        split = results.name.removesuffix("_results.json")
        assert stock.metrics(split) == plain.metrics(split)
        assert wsam.metrics(split).keys() >= plain.metrics(split).keys()
    for written in (p for p in plain.output.iterdir() if "predict" in p.name and not p.stem.endswith("results")):
        assert (stock.output / written.name).read_bytes() == written.read_bytes()
    if (plain.output / "trainer_state.json").exists():
        assert stock.history == plain.history
        first, first_plain = (next(e for e in run.history if "loss" in e) for run in (wsam, plain))
        assert first["loss"] == first_plain["loss"]
        assert first["perturbed_loss"] > first["loss"]
        added = [ours.keys() - theirs.keys() for ours, theirs in zip(wsam.history, plain.history, strict=True)]
        assert ["sharpness" in names for names in added] == ["loss" in entry for entry in plain.history]
    assert "'sharpness'" in wsam.log
    assert "'sharpness'" not in stock.log


VARIANTS = {
    "streamed lines": (
        "masked_language_modeling.py",
        {"streaming": True, "line_by_line": True, "validation_file": "validation.txt"},
    ),
    "model from scratch": (
        "masked_language_modeling.py",
        {
            "model_name_or_path": None,
            "model_type": "bert",
            "config_overrides": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16",
            "tokenizer_name": "bert",
        },
    ),
    "padded to the maximum": ("translation.py", {"pad_to_max_length": True, "label_smoothing_factor": 0.0}),
    "padded in batches": ("question_answering.py", {"pad_to_max_length": False}),
    "batches of predictions": ("named_entities.py", {"eval_do_concat_batches": False, "label_all_tokens": True}),
    "two image folders": ("image_classification.py", {"validation_dir": "images/validation"}),
}
"""What a script's flags switch on: the flags of arguments_of that change, files and models by their names."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str, assets: Path, launch: Launch) -> None:
    script, changes = VARIANTS[variant]
    folders = {"tokenizer_name": "models", "validation_file": "data", "validation_dir": "data"}
    changes = {k: assets / folders[k] / v if k in folders else v for k, v in changes.items()}
    arguments = {k: v for k, v in {**arguments_of(script, assets), **changes}.items() if v is not None}
    plain = launch(script, plain=True, output="plain", **arguments)
    stock = launch(script, output="stock", **arguments)
    wsam = launch(script, output="wsam", optim="wsam", sam_rho=0.1, **arguments)
    for run in plain, stock, wsam:
        assert run.status == 0, run.log
    assert stock.weights == plain.weights != wsam.weights
    assert stock.history == plain.history
    first, first_plain = (next(e for e in run.history if "loss" in e) for run in (wsam, plain))
    assert first["loss"] == first_plain["loss"]
    assert first["perturbed_loss"] > first["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("optim", [{}, {"optim": "wsam", "base_optim": "adamw_torch"}])
def test_resume_as_told(optim: dict[str, str], assets: Path, launch: Launch) -> None:
    """`--resume_from_checkpoint`, in the middle of an epoch, with labels smoothed and texts generated."""
    arguments = {**arguments_of("translation.py", assets), **optim, "lr_scheduler_type": "constant"}
    straight = launch("translation.py", **{**arguments, "max_steps": 4, "save_strategy": "steps", "save_steps": 2})
    assert straight.status == 0, straight.log
    checkpoint = straight.output / "checkpoint-2"
    resumed = launch("translation.py", **arguments, max_steps=4, output="resumed", resume_from_checkpoint=checkpoint)
    assert resumed.status == 0, resumed.log
    assert [e["step"] for e in resumed.history if "loss" in e] == [1, 2, 3, 4]
    if not version("transformers").startswith("5.0."):  # as in test_resume
        assert resumed.weights == straight.weights


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["sam", "xsam"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_methods(script: str, optim: str, assets: Path, launch: Launch) -> None:
    done = launch(script, optim=optim, base_optim="sgd", **arguments_of(script, assets))
    assert done.status == 0, done.log
    assert "'sharpness'" in done.log


@pytest.mark.parametrize("script", ["text_classification.py", "translation.py", "language_modeling.py"])
def test_help(script: str, launch: Launch) -> None:
    """The script's own --help has the flags, and lacks them without this package."""
    shown = launch(script, "--help", common=False)
    assert shown.status == 0
    assert shown.log.startswith(f"usage: {script} ")
    assert all(flag in shown.log for flag in SHARPNESS_FLAGS)
    assert "--optim {sam,wsam,xsam,adamw_torch," in shown.log
    plain = launch(script, "--help", plain=True, common=False, output="plain")
    assert not any(flag in plain.log for flag in SHARPNESS_FLAGS)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_config_file(suffix: str, assets: Path, launch: Launch, tmp_path: Path) -> None:
    """A file in place of the flags, as `script.py config.json`."""
    given = {k: str(v) if isinstance(v, Path) else v for k, v in arguments_of("text_classification.py", assets).items()}
    config = {**COMMON, **given, "optim": "sam", "sam_rho": 0.1, "sam_adaptive": True, "sam_steps": 2}
    path = tmp_path / f"config.{suffix}"
    path.write_text({"json": json.dumps, "yaml": yaml.safe_dump}[suffix]({**config, "output_dir": "from-file"}))
    from_file = launch("text_classification.py", path.name, common=False, output="from-file")
    from_flags = launch("text_classification.py", **config, output="from-flags")
    assert from_file.status == from_flags.status == 0, from_file.log
    assert from_file.weights == from_flags.weights
    assert from_file.history == from_flags.history


def test_wrong_value(assets: Path, launch: Launch) -> None:
    """The script's parser refuses what the sharpness arguments refuse."""
    arguments = arguments_of("text_classification.py", assets)
    unknown = launch("text_classification.py", **arguments, optim="wsan")
    assert unknown.status == 2
    assert "argument --optim: invalid choice: 'wsan'" in unknown.log
    negative = launch("text_classification.py", **arguments, optim="wsam", sam_rho=-1, output="negative")
    assert negative.status == 1
    assert "sam_rho=-1.0" in negative.log


def test_resume(assets: Path, launch: Launch) -> None:
    """A script that finds its last checkpoint goes on where it was."""
    arguments = {**arguments_of("text_classification.py", assets), "optim": "xsam", "lr_scheduler_type": "constant"}
    straight = launch("text_classification.py", **arguments, max_steps=4, output="straight")
    first = launch("text_classification.py", **arguments, max_steps=2, save_strategy="steps", save_steps=2)
    assert first.status == 0, first.log
    resumed = launch("text_classification.py", **arguments, max_steps=4)
    assert resumed.status == 0, resumed.log
    assert [entry["step"] for entry in resumed.history if "sharpness" in entry] == [1, 2, 3, 4]
    if not version("transformers").startswith("5.0."):  # which does not resume a stock run bit for bit either
        assert resumed.weights == straight.weights


def test_counts(assets: Path, launch: Launch) -> None:
    """What a loss function counts, collects and logs comes from the clean passes alone."""
    arguments = {**arguments_of("language_modeling.py", assets), "objective": "mlm"}
    arguments["model_name_or_path"] = assets / "models" / "bert"
    plain = launch("language_modeling.py", **arguments, plain=True, output="plain")
    sam = launch("language_modeling.py", **arguments, optim="sam", sam_steps=2)
    assert sam.status == plain.status == 0, sam.log
    assert sam.log.splitlines()[-1] == plain.log.splitlines()[-1] == "computed 6 collected 6"
    ours, theirs = ([entry for entry in run.history if "z" in entry] for run in (sam, plain))
    assert [(e["step"], e["computed"]) for e in ours] == [(e["step"], e["computed"]) for e in theirs]
    assert [e["z"] for e in ours[:2]] == [e["z"] for e in theirs[:2]]
