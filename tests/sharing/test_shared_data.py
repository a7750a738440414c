"""The data set of somebody else's recipe: its own files on the Hub, and nothing that lies on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in import Client, Hub

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.hub_source import refuse_other_files

RECIPE = """
task: sequence-classification
model: {model_type: bert, tokenizer: user/model}
data: {source: user/reviews}
"""
ROWS = "text,label\n" + "good film,pos\nbad film,neg\n" * 10
ELSEWHERE = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"


def labels(folder: Path, name: str, *flags: str) -> list[str] | str:
    """Called in the client's process: the names of the classes that a shared recipe would train on, or the error."""
    from hf_sharpness.tasks.errors import RecipeError
    from hf_sharpness.tasks.flags import apply_flags, load_named
    from hf_sharpness.tasks.splits import load_data

    os.chdir(folder)
    try:
        recipe = load_named(name)
        apply_flags(recipe, flags)
        return load_data(recipe).label_names
    except RecipeError as error:
        return str(error)


@pytest.fixture
def shared(hub: Hub, tmp_path: Path) -> Path:
    """The recipe's repo, and a folder with a secret in it."""
    pytest.importorskip("datasets")
    hub.commit("user/films", {"recipe.yaml": RECIPE.encode()})
    hub.commit("datasets/user/reviews", {"train.csv": ROWS.encode(), "README.md": b""})
    (tmp_path / "secrets.csv").write_text("text,label\n" + "a,password\nb,hunter2\n" * 10)
    return tmp_path


def test_the_files_of_a_data_set_on_the_hub(shared: Path, online: Client) -> None:
    assert online(labels, shared, "user/films") == ["neg", "pos"]


@pytest.mark.parametrize("where", ["{secrets}", "hf://datasets/somebody/private/secrets.csv"])
def test_a_data_set_that_names_other_files(shared: Path, hub: Hub, online: Client, where: str) -> None:
    hub.commit("datasets/somebody/private", {"secrets.csv": (shared / "secrets.csv").read_bytes()})
    readme = ELSEWHERE.format(where.format(secrets=shared / "secrets.csv"))
    hub.commit("datasets/user/reviews", {"README.md": readme.encode()})
    refusal = online(labels, shared, "user/films")
    assert isinstance(refusal, str), refusal
    assert "user/reviews" in refusal
    assert "password" not in refusal


def test_a_folder_of_the_same_name_is_not_taken_for_it(shared: Path, online: Client) -> None:
    (shared / "user" / "reviews").mkdir(parents=True)
    (shared / "secrets.csv").rename(shared / "user" / "reviews" / "train.csv")
    refusal = online(labels, shared, "user/films")
    assert "there is a folder of this name here; give --data.source ./user/reviews to take it" in refusal
    assert online(labels, shared, "user/films", "--data.source", "./user/reviews") == ["hunter2", "password"]
    assert online(labels, shared, "user/films", "--data.seed", "3") == refusal


def test_a_model_folder_of_the_same_name_is_not_taken_for_it(shared: Path, online: Client) -> None:
    (shared / "user" / "model").mkdir(parents=True)
    refusal = online(labels, shared, "user/films")
    assert "model.tokenizer: 'user/model' would be the file or folder of this name here" in refusal


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "secrets.csv",
        "https://host/x.csv",
        "hf://datasets/user/other@0123/x.csv",
        "hf://datasets/user/reviews-2@0123/x.csv",
        "zip://x::hf://datasets/user/reviews@0123/x.zip",
    ],
)
def test_files_that_are_not_the_data_sets_own(file: str) -> None:
    own = "hf://datasets/user/reviews@0123/train.csv"
    for files in ({"train": [own]}, None, {}):
        refuse_other_files(SimpleNamespace(config=SimpleNamespace(data_files=files)), "user/reviews")
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": [own], "test": [own, file]}))
    with pytest.raises(RecipeError, match="no file of its own"):
        refuse_other_files(builder, "user/reviews")
