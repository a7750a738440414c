"""No finished run is lost: which folder a run gets, and what training into one that is taken needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.folders import check_free, clear, default_folder


def arguments(**changes):
    return SimpleNamespace(**{"optim": "wsam", "uses_sharpness": True, "sam_adaptive": False, "seed": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "digits-wsam-seed3"),
        ({"sam_adaptive": True}, "digits-wsam-adaptive-seed3"),
        ({"optim": SimpleNamespace(value="adamw_torch"), "uses_sharpness": False}, "digits-adamw_torch-seed3"),
        ({"optim": "sgd", "uses_sharpness": False, "sam_adaptive": True}, "digits-sgd-seed3"),
    ],
)
def test_recipe_method_and_seed_name_the_folder(changes, name):
    assert default_folder("digits", arguments(**changes)) == Path("outputs") / name


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["test_results.json", "model.safetensors"],
            ["a finished run", "--overwrite_output_dir", "--output_dir"],
        ),
        (["checkpoint-20/trainer_state.json"], ["did not finish", "--resume_from_checkpoint true"]),
        (["model-00001-of-00002.safetensors"], ["holds a model", "model-00001-of-00002.safetensors"]),
        (["pytorch_model.bin"], ["holds a model"]),
        (["trainer_state.json"], ["trainer_state.json"]),
    ],
)
def test_a_folder_with_a_run_is_taken(tmp_path, names, words):
    with pytest.raises(RecipeError) as caught:
        check_free(touch(tmp_path, *names), None)
    for word in [*words, str(tmp_path)]:
        assert word in str(caught.value)


@pytest.mark.parametrize("names", [[], ["notes.txt", "runs/events", "checkpoint-best/x", "checkpoint-3"]])
def test_other_files_do_not_take_it(tmp_path, names):
    check_free(touch(tmp_path, *names), None)
    check_free(tmp_path / "new", None)


def test_a_resume_of_the_run_itself_may_go_on(tmp_path, monkeypatch):
    folder = touch(tmp_path / "a", "test_results.json", "checkpoint-20/trainer_state.json")
    check_free(folder, str(folder / "checkpoint-20"))
    monkeypatch.chdir(tmp_path)
    check_free(Path("a"), str(folder / "checkpoint-20"))
    other = touch(tmp_path / "b", "checkpoint-20/trainer_state.json")
    with pytest.raises(RecipeError, match="finished run"):
        check_free(folder, str(other / "checkpoint-20"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_cleared_is_of_a_run(tmp_path):
    kept = ["notes.txt", "checkpoint-best/x", "data/checkpoint-1/x", "config.json"]
    gone = ["checkpoint-20/optimizer.pt", "model.safetensors", "test_results.json", "trainer_state.json"]
    clear(touch(tmp_path, *kept, *gone), checkpoints=False)
    assert files(tmp_path) == sorted([*kept, "checkpoint-20/optimizer.pt"])
    clear(tmp_path, checkpoints=True)
    assert files(tmp_path) == sorted(kept)
    check_free(tmp_path, None)


def test_a_link_to_a_checkpoint_elsewhere_is_not_followed(tmp_path):
    elsewhere = touch(tmp_path / "elsewhere", "optimizer.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-5").symlink_to(elsewhere)
    clear(tmp_path / "run", checkpoints=True)
    assert (elsewhere / "optimizer.pt").exists()
    assert not (tmp_path / "run" / "checkpoint-5").exists()
