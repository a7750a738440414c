"""The data set of somebody else's recipe: its own files on the Hub, and nothing that lies on this machine."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in import Client, Hub

from hf_sharpness.tasks.bundled import find_recipe
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.hub_source import refuse_other_files, refuse_other_images
from hf_sharpness.tasks.recipe import load_recipe, override, second_test

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


IMAGES = """
task: image-classification
model: {model_type: vit, config: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8}}
data: {source: user/photos}
"""


def picture(value: int) -> bytes:
    """A file with one grey pixel."""
    image = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    image.new("L", (1, 1), value).save(content, "png")
    return content.getvalue()


def test_images_that_are_not_the_data_sets_own() -> None:
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    own = [
        {"bytes": b"a", "path": "/none/1.png"},  # the name of what was embedded
        {"bytes": None, "path": "hf://datasets/user/photos@0123/cat/1.png"},
        {"bytes": None, "path": f"{constants.HF_HUB_CACHE}/datasets--user--photos/snapshots/0123/cat/1.png"},
        {"bytes": None, "path": f"{datasets.config.DOWNLOADED_DATASETS_PATH}/extracted/0123/cat/1.png"},
        None,
    ]
    others = [
        "/home/me/1.png",
        "1.png",
        "https://host/1.png",
        "hf://datasets/user/other@0123/1.png",
        "hf://datasets/user/photos@0123/../../other@0123/1.png",
        f"{constants.HF_HUB_CACHE}/datasets--user--photos/snapshots/../../../../1.png",
        f"{constants.HF_HUB_CACHE}/datasets--user--private/snapshots/0123/1.png",
    ]
    features = datasets.Features({"image": datasets.Image()})
    refuse_other_images(datasets.Dataset.from_dict({"image": own}, features=features), ["image"], "user/photos")
    for path in others:
        cells = [*own, {"bytes": None, "path": path}]
        dataset = datasets.Dataset.from_dict({"image": cells}, features=features)
        with pytest.raises(RecipeError, match="no file of its own"):
            refuse_other_images(dataset, ["image"], "user/photos")
        nested = datasets.Features({"image": [datasets.Image()]})
        with pytest.raises(RecipeError, match="may name files"):
            refuse_other_images(datasets.Dataset.from_dict({"image": [cells]}, features=nested), ["image"], "u/p")


def test_a_table_that_names_an_image_here(hub: Hub, tmp_path: Path, online: Client) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "mine.png").write_bytes(picture(7))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    labels_of = ["cat", "dog"] * 10
    embedded = [{"bytes": picture(i), "path": None} for i in range(20)]
    hub.commit("user/recipe", {"recipe.yaml": IMAGES.encode()})
    for cells, refused in (
        (embedded, False),
        ([*embedded[:-1], {"bytes": None, "path": str(tmp_path / "mine.png")}], True),
    ):
        table = datasets.Dataset.from_dict({"image": cells, "label": labels_of}, features=features)
        table.to_parquet(tmp_path / "train.parquet")
        hub.commit(
            "datasets/user/photos", {"train.parquet": (tmp_path / "train.parquet").read_bytes(), "README.md": b""}
        )
        told = online(labels, tmp_path, "user/recipe")
        assert ("no file of its own" in told) if refused else told == ["cat", "dog"], told


def test_a_choice_of_ones_own_is_of_that_data_set_alone() -> None:
    recipe = load_recipe(find_recipe("digits-vit"))
    recipe.data.second_test = {"source": "user/other"}
    recipe.shared = recipe.data_from_hub = recipe.second_test_from_hub = True
    override(recipe, "data.source", "./mine")
    assert not recipe.data_from_hub
    assert second_test(recipe).data_from_hub
    override(recipe, "data.second_test.source", "./mine")
    assert not second_test(recipe).data_from_hub
