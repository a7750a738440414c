"""The command line: every flag of TrainingArguments, dotted overrides, and errors without tracebacks."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_sharpness
from hf_sharpness import cli
from hf_sharpness.tasks import run
from hf_sharpness.tasks.bundled import bundled_recipes
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.extra import MODULES
from hf_sharpness.tasks.flags import parse_training_flags, split_dotted
from hf_sharpness.tasks.recipe import load_recipe


@pytest.fixture
def captured(monkeypatch):
    """The recipes that `train` would run, each with the options."""
    seen = []
    monkeypatch.setattr(run, "run_recipe", lambda recipe, **options: seen.append((recipe, options)))
    return seen


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--learning_rate", "1e-4"], {"learning_rate": 1e-4}),
        (["--learning-rate=1e-4"], {"learning_rate": 1e-4}),
        (["--optim", "xsam", "--sam_rho", "0.1"], {"optim": "xsam", "sam_rho": 0.1}),
        (["--bf16"], {"bf16": True}),
        (["--bf16", "false"], {"bf16": False}),
        (["--bf16", "--max_steps", "3"], {"bf16": True, "max_steps": 3}),
        (["--sam_adaptive"], {"sam_adaptive": True}),
        (["--sam_adaptive", "0"], {"sam_adaptive": False}),
        (["--no_dataloader_pin_memory"], {"dataloader_pin_memory": False}),
        (["--wsam_gamma", "0.9", "--wsam_mode", "decoupled"], {"wsam_gamma": 0.9, "wsam_mode": "decoupled"}),
        (["--xsam_refresh", "50"], {"xsam_refresh": "50"}),
        (["--xsam_alpha", "1.0"], {"xsam_alpha": 1.0}),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], {"lr_scheduler_kwargs": '{"num_cycles": 2}'}),
        (["--label_names", "a", "b"], {"label_names": ["a", "b"]}),
        (["--resume_from_checkpoint", "true"], {"resume_from_checkpoint": "true"}),
        (["--learning_rate", "5e-5"], {"learning_rate": 5e-5}),  # given, though it is the default
    ],
)
def test_training_flags(flags, expected):
    assert parse_training_flags(flags) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning_rte", "1"], ["'--learning_rte'", "'--learning_rate'", "--help"]),
        (["--learning_rate", "fast"], ["--learning_rate", "'fast'"]),
        (["--learn", "1"], ["'--learn'"]),  # no abbreviations
        (["--lr_scheduler_type", "cosin"], ["--lr_scheduler_type", "'cosin'", "'cosine'"]),
        (["--bf16", "perhaps"], ["--bf16", "perhaps"]),
        (["--max_steps"], ["--max_steps", "expected one argument"]),
        (["stray"], ["'stray'"]),
    ],
)
def test_wrong_training_flags(flags, words):
    with pytest.raises(RecipeError) as caught:
        parse_training_flags(flags)
    for word in words:
        assert word in str(caught.value)


def test_dotted_flags():
    dotted, rest = split_dotted(
        ["--data.train_samples", "5", "--bf16", "--model.config.x=a=b", "--data.seed", "-1", "--max_steps", "3"]
    )
    assert dotted == [("data.train_samples", "5"), ("model.config.x", "a=b"), ("data.seed", "-1")]
    assert rest == ["--bf16", "--max_steps", "3"]
    with pytest.raises(RecipeError, match=r"--data\.seed: a value is missing"):
        split_dotted(["--data.seed", "--bf16"])


def test_flags_win_over_the_recipe(captured):
    status = cli.main(
        ["train", "digits-vit", "--sam_rho", "0.2", "--data.train_samples", "9", "--model.config.hidden_size", "32"]
    )
    ((recipe, options),) = captured
    stored = load_recipe(bundled_recipes()["digits-vit"])
    assert status == 0
    assert recipe.training == {**stored.training, "sam_rho": 0.2, "disable_tqdm": True}
    assert recipe.training_of_file == stored.training
    assert options == {"overwrite": False, "one_thread_if_small": True}
    assert recipe.data.train_samples == 9
    assert recipe.model.config == {**stored.model.config, "hidden_size": 32}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["RECIPE is missing", "hf-sharpness recipes"]),
        (["train", "--bf16", "digits-vit"], ["recipe comes first", "'--bf16'"]),
        (["train", "digit-vit"], ["'digit-vit'", "'digits-vit'"]),
        (["train", "digits-vit", "--data.train_sample", "3"], ["'train_sample'", "'train_samples'"]),
        (["train", "digits-vit", "--data.label_noise", "2"], ["data.label_noise", "2"]),
        (["train", "digits-vit", "--sam_roh", "3"], ["'--sam_roh'", "'--sam_rho'"]),
        (["train", "digits-vit", "--sam_rho", "-1"], ["error: command line: sam_rho=-1.0", "must be"]),
        (["train", "digits-vit", "--learning_rate", "-1"], ["error: command line: ", "-1.0"]),
        (["train", "digits-vit", "--lr_scheduler_kwargs", '{"x": 1}'], ["error: command line: ", "'x'"]),
        (["train", "digits-vit", "--sam_rho", "1e400"], ["error: command line: training.sam_rho: inf", "must be"]),
        (["train", "digits-vit", "--seed", "-1"], ["error: command line: seed=-1"]),
        (["train", "mine.yaml"], ["error: mine.yaml: training: sam_rho=-2"]),
        (["train", "mine.yaml", "--seed", "1"], ["error: mine.yaml: training: sam_rho=-2"]),
        (
            ["train", "schedule.yaml", "--seed", "1"],
            ["error: schedule.yaml: training: lr_scheduler_kwargs={'nonsense': 3} does not fit", "'nonsense'"],
        ),
        (["train", "patches.yaml"], ["model.config.patch_size: 16 is larger than the images of 8 x 8", "patch_size 2"]),
        (["train", "s1.py"], ["'s1.py' is a script", "hf-sharpness run s1.py", "--script s1.py"]),
        (["rho", "digits-vit", "--nope"], ["rho: unknown flag '--nope'", "hf-sharpness rho --help"]),
        (["compare", "digits-vit", "--nope", "1"], ["compare: unknown flag '--nope'", "hf-sharpness compare --help"]),
        (["train", "folder"], ["'folder'", "holds no recipe.yaml"]),
        (["train", "digits-vit", "--data.source", "trec"], ["'trec'", "digits"]),
    ],
)
def test_a_user_error_is_one_line_and_status_2(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(MINE)
    schedule = "lr_scheduler_type: cosine, lr_scheduler_kwargs: {nonsense: 3}"
    small = "model: {config: {patch_size: 4, hidden_size: 12, num_hidden_layers: 1}}"
    (tmp_path / "schedule.yaml").write_text(f"{MINE.partition('training:')[0]}{small}\ntraining: {{{schedule}}}\n")
    (tmp_path / "patches.yaml").write_text(MINE.replace("-2", "0.1"))
    (tmp_path / "folder").mkdir()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("hf-sharpness: error: ")
    for word in words:
        assert word in error


@pytest.mark.parametrize("arguments", [["fine-tune"], [], ["recipes", "extra"]])
def test_an_unknown_command_is_status_2(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


MINE = "task: image-classification\ndata: {source: digits}\ntraining: {optim: sam, sam_rho: -2}\n"


@pytest.mark.parametrize(
    ("flags", "overwrite"),
    [
        ([], False),
        (["--overwrite_output_dir"], True),
        (["--overwrite-output-dir", "--bf16"], True),
        (["--overwrite_output_dir", "false"], False),
    ],
)
def test_overwriting_is_a_flag_of_the_command(captured, flags, overwrite):
    assert cli.main(["train", "digits-vit", *flags]) == 0
    ((recipe, options),) = captured
    assert options["overwrite"] == overwrite
    assert "overwrite_output_dir" not in recipe.training


def test_a_folder_with_a_recipe_is_a_recipe(captured, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text(MINE)
    assert cli.main(["train", str(tmp_path / "mine")]) == 0
    assert captured[0][0].name == "mine"


def test_a_sharpness_config_lies_beside_the_recipe(captured, tmp_path):
    (tmp_path / "shared").mkdir()
    recipe = MINE.replace("optim: sam, sam_rho: -2", "sharpness_config: shared")
    (tmp_path / "mine.yaml").write_text(recipe)
    cli.main(["train", str(tmp_path / "mine.yaml")])
    (tmp_path / "other.yaml").write_text(recipe.replace("shared", "user/repo"))
    cli.main(["train", str(tmp_path / "other.yaml")])
    assert [recipe.training["sharpness_config"] for recipe, _ in captured] == [str(tmp_path / "shared"), "user/repo"]


def test_help_begins_with_the_sharpness_arguments(capsys):
    assert cli.main(["train", "--help"]) == 0
    short = capsys.readouterr().out
    assert cli.main(["train", "digits-vit", "--help-all"]) == 0
    full = capsys.readouterr().out
    for text in (short, full):
        places = [text.index(f"  --{word}") for word in ("optim", "sam_rho", "output_dir", "overwrite_output_dir")]
        assert places == sorted(places)
        for word in ("--wsam_gamma", "--xsam_alpha", "--data.KEY", "RECIPE"):
            assert word in text
    assert len(short.splitlines()) < 180
    assert "dataloader_num_workers" not in short
    assert "--help-all" in short
    for word in ("dataloader_num_workers", "train_samples", "name_or_path"):
        assert word in full


@pytest.mark.parametrize("command", ["train digits-vit", "train --help"])
def test_all_of_the_extra_is_checked_first(command, capsys, monkeypatch):
    found = importlib.util.find_spec
    absent = {"matplotlib", "sklearn"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else found(name, *rest))
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert "(matplotlib, scikit-learn): `pip install 'hf_sharpness[recipes]'`" in error


def test_the_extra_that_is_checked_is_the_one_of_the_package():
    config = configparser.ConfigParser()
    config.read(Path(__file__).resolve().parents[1] / "setup.cfg")
    extra = config["options.extras_require"]["recipes"].split()
    assert {re.split("[<>=]", requirement)[0] for requirement in extra} == set(MODULES.values())


@pytest.mark.parametrize("command", ["recipes", "list"])
def test_recipes_are_listed(command, capsys):
    assert cli.main([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bundled_recipes())
    assert all(len(line.split()) > 3 for line in lines)


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    installed = importlib.metadata.version("torch")
    assert out.startswith(f"hf-sharpness {hf_sharpness.__version__} (torch {installed}, transformers ")
    assert out.count("\n") == 1


def test_python_m_is_the_command():
    result = subprocess.run([sys.executable, "-m", "hf_sharpness", "list"], capture_output=True, text=True, check=True)
    assert "digits-vit" in result.stdout


def test_listing_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from hf_sharpness.cli import main; main(['recipes']); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()"
