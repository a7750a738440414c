"""Recipes: YAML in, a checked `Recipe` out; every mistake is one error that names key, file and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_sharpness.tasks.bundled import bundled_recipes, find_recipe
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.recipe import check_training, check_values, load_recipe, override, second_test
from hf_sharpness.tasks.yaml12 import parse_yaml

MINIMAL = "task: image-classification\ndata: {source: digits}\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+4", -25000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("-7", -7),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'12'", "12"),
        ("1:30", "1:30"),
        (".inf", float("inf")),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_sections_and_defaults(write):
    recipe = load_recipe(write(MINIMAL + "training: {learning_rate: 1e-3, save_strategy: no}\n"))
    assert recipe.task == "image-classification"
    assert recipe.data.source == "digits"
    assert recipe.data.test_fraction == 0.2
    assert recipe.data.train_samples is None
    assert recipe.model.name_or_path is None
    assert recipe.model.dtype == "float32"
    assert recipe.training == {"learning_rate": 0.001, "save_strategy": "no"}
    assert recipe.metrics == ["accuracy", "macro_f1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "trainig: {}\n", ["'trainig'", "'training'"]),
        (
            "task: image-classification\ndata: {source: digits, train_sample: 3}\n",
            ["'train_sample'", "'train_samples'", "data"],
        ),
        (MINIMAL + "model: {name: x}\n", ["'name'", "section model"]),
        (MINIMAL.replace("image-cl", "img-cl"), ["task", "img-classification", "sequence-classification"]),
        ("task: image-classification\n", ["data.source"]),
        (
            "task: image-classification\ndata: {source: digits, train_samples: '3'}\n",
            ["data.train_samples", "'3'", "whole number"],
        ),
        ("task: image-classification\ndata: {source: digits, train_samples: true}\n", ["data.train_samples", "True"]),
        (
            "task: image-classification\ndata: {source: digits, label_noise: yes}\n",
            ["data.label_noise", "'yes'", "a number"],
        ),
        ("task: image-classification\ndata: {source: digits, label_noise: 1.5}\n", ["data.label_noise", "1.5"]),
        ("task: image-classification\ndata: {source: digits, test_fraction: 0}\n", ["data.test_fraction", "0"]),
        ("task: image-classification\ndata: {source: digits, eval_samples: 0}\n", ["data.eval_samples", "0"]),
        ("task: image-classification\ndata: {source: 5}\n", ["data.source", "5", 'quote it: "5"']),
        (MINIMAL + "model: {dtype: float64}\n", ["model.dtype", "'float64'", "float32", "bfloat16"]),
        (MINIMAL + "model: {config: [1]}\n", ["model.config", "a mapping"]),
        (MINIMAL + "metrics: accuracy\n", ["metrics", "'accuracy'", "a list"]),
        (MINIMAL + "data: {source: trec}\n", ["'data' stands twice"]),
        ("- a\n", ["mapping"]),
        ("a: [\n", ["not valid YAML"]),
    ],
)
def test_a_mistake_is_one_clear_error(write, text, words):
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for word in [*words, "mine.yaml"]:
        assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_python_tags_are_refused(write):
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(write("task: !!python/object/apply:os.getcwd []\n"))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"learning_rte": 1.0}, ["'learning_rte'", "'learning_rate'", "section training"]),
        ({"learning_rate": "fast"}, ["training.learning_rate", "'fast'", "a number"]),
        ({"max_steps": 3.5}, ["training.max_steps", "3.5", "whole number"]),
        ({"bf16": "yes"}, ["training.bf16", "'yes'", "true or false"]),
        ({"optim": 3}, ["training.optim", "3"]),
    ],
)
def test_training_section_is_checked_against_the_arguments(training, words):
    from hf_sharpness import TrainingArguments

    with pytest.raises(RecipeError) as caught:
        check_training(training, TrainingArguments, "mine.yaml")
    for word in [*words, "mine.yaml"]:
        assert word in str(caught.value)


def test_training_section_takes_every_kind_of_field():
    from hf_sharpness import TrainingArguments

    check_training(
        {
            "optim": "wsam",
            "sam_rho": 1,
            "wsam_gamma": None,
            "lr_scheduler_kwargs": {"num_cycles": 2},
            "report_to": ["tensorboard"],
            "lr_scheduler_type": "cosine",
            "bf16": True,
            "label_names": ["labels"],
            "eval_steps": 0.1,
        },
        TrainingArguments,
        "mine.yaml",
    )


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("data.train_samples", "2000", lambda r: r.data.train_samples == 2000),
        ("data.train_samples", "null", lambda r: r.data.train_samples is None),
        ("data.label_noise", "4e-1", lambda r: r.data.label_noise == 0.4),
        ("data.text_column", "123", lambda r: r.data.text_column == "123"),
        ("data.data_files", "a.csv", lambda r: r.data.data_files == "a.csv"),
        ("data.data_files", "[a.csv, b.csv]", lambda r: r.data.data_files == ["a.csv", "b.csv"]),
        ("data.data_files.train", "a.csv", lambda r: r.data.data_files == {"train": "a.csv"}),
        ("model.name_or_path", "org/model", lambda r: r.model.name_or_path == "org/model"),
        ("model.name_or_path", "builtin:minilm", lambda r: r.model.name_or_path == "builtin:minilm"),
        ("model.pretrained", "false", lambda r: r.model.pretrained is False),
        ("model.config.hidden_size", "32", lambda r: r.model.config == {"patch_size": 2, "hidden_size": 32}),
        ("model.config.rope.theta", "1e4", lambda r: r.model.config["rope"] == {"theta": 10000.0}),
    ],
)
def test_dotted_overrides(write, name, text, read):
    recipe = load_recipe(write(MINIMAL + "model: {config: {patch_size: 2}}\n"))
    override(recipe, name, text)
    assert read(recipe)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("data.train_sample", "3", ["--data.train_sample", "'train_samples'"]),
        ("data.train_samples", "many", ["--data.train_samples", "'many'", "whole number"]),
        ("model.pretrained", "nope", ["--model.pretrained", "'nope'", "true or false"]),
        ("data.seed.x", "3", ["--data.seed.x", "not a mapping"]),
    ],
)
def test_a_wrong_override_is_one_clear_error(write, name, text, words):
    recipe = load_recipe(write(MINIMAL))
    with pytest.raises(RecipeError) as caught:
        override(recipe, name, text)
    for word in words:
        assert word in str(caught.value)


def test_values_are_checked_whoever_sets_them(write):
    recipe = load_recipe(write(MINIMAL))
    with pytest.raises(RecipeError, match=r"^--data\.train_samples: -1 is not valid: must be greater"):
        override(recipe, "data.train_samples", "-1")
    recipe.data.train_samples = -1
    with pytest.raises(RecipeError, match=r"mine\.yaml: data\.train_samples: -1"):
        check_values(recipe)


def test_a_saved_recipe_reads_back_equal(write, tmp_path):
    recipe = load_recipe(
        write(MINIMAL + "description: 'ä: no'\nmodel: {config: {a: '1e-3', b: 'no', c: '010', d: [1, 2.5e-7]}}\n")
    )
    recipe.training = {"save_strategy": "no", "run_name": "12", "learning_rate": 1e-4, "bf16": False, "eval_steps": 0.5}
    recipe.save(tmp_path / "saved.yaml")
    saved = load_recipe(tmp_path / "saved.yaml")
    saved.origin = recipe.origin
    assert saved == recipe
    assert saved.model.config == {"a": "1e-3", "b": "no", "c": "010", "d": [1, 2.5e-7]}


def test_a_file_wins_over_a_bundled_name(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("digits-vit") == bundled_recipes()["digits-vit"]
    write(MINIMAL, "digits-vit")
    assert find_recipe("digits-vit") == Path("digits-vit")


def test_an_unknown_recipe_names_the_nearest_and_all():
    with pytest.raises(RecipeError, match=r"'digit-vit'.*did you mean 'digits-vit'.*trec-minilm"):
        find_recipe("digit-vit")


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_are_valid(name):
    from hf_sharpness import TrainingArguments

    recipe = load_recipe(bundled_recipes()[name])
    check_training(recipe.training, TrainingArguments, name)
    TrainingArguments(**recipe.training)
    assert recipe.description
    assert "\n" not in recipe.description
    assert "output_dir" not in recipe.training


def test_a_second_data_set_differs_in_its_entries(write):
    recipe = load_recipe(
        write(
            "task: image-classification\ndata: {source: digits, test_fraction: 0.5, second_test: {source: mnist5k}}\n"
        )
    )
    other = second_test(recipe)
    assert (other.data.source, other.data.test_fraction, other.data.second_test) == ("mnist5k", 0.5, None)
    assert recipe.data.source == "digits"


@pytest.mark.parametrize(
    ("second", "words"),
    [("{sauce: x}", ["data.second_test", "'sauce'"]), ("{label_noise: 2}", ["data.second_test.label_noise", "2"])],
)
def test_a_mistake_in_the_second_data_set(write, second, words):
    with pytest.raises(RecipeError) as raised:
        load_recipe(write("task: image-classification\ndata: {source: digits, second_test: " + second + "}\n"))
    assert all(word in str(raised.value) for word in words)
