"""Configs and recipes on a Hub: the real huggingface_hub client against a stand-in on the loopback interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in import Client, Hub

CONFIG = {"format_version": 1, "optim": "wsam", "sam_rho": 0.3, "wsam_gamma": 0.7}
RECIPE = b"task: image-classification\ndata: {source: digits}\ntraining: {optim: wsam, sam_rho: 0.1}\n"


def config(**arguments: Any) -> dict[str, bytes]:
    return {"sharpness_config.json": json.dumps(CONFIG | arguments).encode()}


# Called in the client's process.


def loaded(name: str, **options: Any) -> dict[str, Any]:
    from hf_sharpness import SharpnessArguments

    return vars(SharpnessArguments.from_pretrained(name, **options))


def parsed(*line: str) -> dict[str, Any]:
    from transformers import HfArgumentParser

    from hf_sharpness import TrainingArguments

    (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(list(line), look_for_args_file=False)
    return {name: getattr(arguments, name) for name in ("optim", "sam_rho", "wsam_gamma", "sharpness_config")}


def pushed(repo: str, **options: Any) -> str:
    from hf_sharpness import SharpnessArguments

    return SharpnessArguments(optim="xsam", sam_rho=0.25, xsam_refresh=3).push_to_hub(repo, **options).oid


def saved_and_pushed(folder: Path, **options: Any) -> None:
    from hf_sharpness import TrainingArguments

    arguments = TrainingArguments(str(folder / "run"), optim="sam", sam_rho=0.15, use_cpu=True)
    arguments.save_pretrained(folder, push_to_hub=True, **options)


def recipe(name: str, **options: Any) -> bytes:
    from hf_sharpness.tasks.shared import download_recipe

    return download_recipe(name, **options).read_bytes()


def trained_and_pushed(folder: Path, repo: str | None, **arguments: Any) -> None:
    from models.text import ITEMS, classifier

    from hf_sharpness import Trainer, TrainingArguments

    arguments = {
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    } | arguments
    args = TrainingArguments(str(folder), hub_model_id=repo, optim="wsam", sam_rho=0.2, wsam_gamma=0.8, **arguments)
    trainer = Trainer(model=classifier(), args=args, train_dataset=ITEMS)
    trainer.train()
    trainer.push_to_hub()


# Loading


def test_a_config_is_loaded_and_cached(hub: Hub, online: Client) -> None:
    hub.commit("user/plain", config())
    assert loaded_values(online(loaded, "user/plain")) == ("wsam", 0.3, 0.7)
    before = len(hub.requests)
    online(loaded, "user/plain")
    assert not [r for r in hub.requests[before:] if r.startswith("GET")]  # asked for news, not downloaded again
    hub.commit("user/plain", config(sam_rho=0.4))
    assert loaded_values(online(loaded, "user/plain")) == ("wsam", 0.4, 0.7)


def loaded_values(arguments: dict[str, Any]) -> tuple[Any, ...]:
    return arguments["optim"], arguments["sam_rho"], arguments["wsam_gamma"]


def test_revisions(hub: Hub, online: Client) -> None:
    """A branch, a pull request, a commit; as an argument and in the name."""
    first = hub.commit("user/revised", config(sam_rho=0.1))
    hub.commit("user/revised", config(sam_rho=0.2))
    hub.commit("user/revised", config(sam_rho=0.3), revision="v1")
    hub.commit("user/revised", config(sam_rho=0.4), revision="refs/pr/1")
    for revision, rho in [("main", 0.2), (first, 0.1), ("v1", 0.3), ("refs/pr/1", 0.4)]:
        assert online(loaded, "user/revised", revision=revision)["sam_rho"] == rho
        assert online(loaded, f"user/revised@{revision}")["sam_rho"] == rho
    assert online(loaded, "user/revised@v1", revision="v1")["sam_rho"] == 0.3
    with pytest.raises(ValueError, match="names the revision 'v1', but revision='main' was given"):
        online(loaded, "user/revised@v1", revision="main")


def test_the_command_line(hub: Hub, online: Client, tmp_path: Path) -> None:
    hub.commit("user/cli", config(), revision="v2")
    line = ["--output_dir", str(tmp_path), "--sharpness_config", "user/cli@v2"]
    common = {"optim": "wsam", "wsam_gamma": 0.7, "sharpness_config": None}
    assert online(parsed, *line) == {"sam_rho": 0.3} | common
    assert online(parsed, *line, "--sam_rho", "0.05") == {"sam_rho": 0.05} | common


def test_access_with_a_token(hub: Hub, online: Client, tmp_path: Path) -> None:
    hub.commit("user/gated", config(), gated=True)
    with pytest.raises(OSError, match=r"user/gated on the Hub is gated: ask for access .* or pass a token"):
        online(loaded, "user/gated")
    assert online(loaded, "user/gated", token=Hub.TOKEN)["sam_rho"] == 0.3
    line = ["--output_dir", str(tmp_path), "--sharpness_config", "user/gated", "--hub_token", Hub.TOKEN]
    assert online(parsed, *line)["sam_rho"] == 0.3


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("user/missing", r"no local file or folder, and the repo user/missing on the Hub does not exist or is private"),
        ("user/there@v9", r"the repo user/there on the Hub has no revision 'v9': give one of its branches"),
        ("user/empty", r"the repo user/empty on the Hub has no sharpness_config.json"),
    ],
)
def test_what_is_not_there(hub: Hub, online: Client, name: str, problem: str) -> None:
    hub.commit("user/there", config())
    hub.commit("user/empty", {"README.md": b"nothing"})
    with pytest.raises(OSError, match=problem):
        online(loaded, name)


def test_a_large_file_is_not_downloaded(hub: Hub, online: Client) -> None:
    hub.commit("user/large", {"sharpness_config.json": b" " * 100_000, "recipe.yaml": b"#" * 100_000})
    before = len(hub.requests)
    with pytest.raises(ValueError, match=r"user/large/sharpness_config.json: is 100,000 bytes large.*not downloaded"):
        online(loaded, "user/large")
    with pytest.raises(ValueError, match=r"user/large/recipe.yaml: is 100,000 bytes large.*not downloaded"):
        online(recipe, "user/large")
    assert not [r for r in hub.requests[before:] if r.startswith("GET")]


def test_a_hostile_config_on_the_hub(hub: Hub, online: Client) -> None:
    hub.commit("user/hostile", config(output_dir="/etc"))
    with pytest.raises(ValueError, match=r"user/hostile/sharpness_config.json: the key 'output_dir' is not allowed"):
        online(loaded, "user/hostile")


def test_offline(hub: Hub, online: Client, offline: Client) -> None:
    """What was downloaded once is there without the network; the rest gives an error that says why."""
    hub.commit("user/cached", config(sam_rho=0.6) | {"recipe.yaml": RECIPE})
    hub.commit("user/uncached", config())
    online(loaded, "user/cached")
    online(recipe, "user/cached")
    before = len(hub.requests)
    assert offline(loaded, "user/cached")["sam_rho"] == 0.6
    assert offline(recipe, "user/cached") == RECIPE
    assert online(loaded, "user/cached", local_files_only=True)["sam_rho"] == 0.6
    with pytest.raises(OSError, match=r"out of reach, with no sharpness_config.json of it in the cache"):
        offline(loaded, "user/uncached")
    with pytest.raises(OSError, match=r"out of reach, with no sharpness_config.json of it in the cache"):
        online(loaded, "user/uncached", local_files_only=True)
    assert len(hub.requests) == before


def test_a_cache_of_ones_own(hub: Hub, online: Client, tmp_path: Path) -> None:
    hub.commit("user/elsewhere", config())
    online(loaded, "user/elsewhere", cache_dir=tmp_path)
    assert list(tmp_path.rglob("sharpness_config.json"))


# Uploading


def test_push_and_load_again(hub: Hub, online: Client) -> None:
    commit = online(pushed, "user/pushed", commit_message="A better rho")
    assert set(hub.repos["user/pushed"].commits[commit]) == {".gitattributes", "sharpness_config.json"}
    again = online(loaded, "user/pushed")
    assert (again["optim"], again["sam_rho"], again["xsam_refresh"]) == ("xsam", 0.25, 3)
    online(pushed, "user/pushed")  # the repo is there already


def test_save_and_push(hub: Hub, online: Client, tmp_path: Path) -> None:
    """`push_to_hub` is a field of TrainingArguments, `save_pretrained` does it there; the folder names the repo."""
    folder = tmp_path / "my-model"
    online(saved_and_pushed, folder)
    online(saved_and_pushed, folder, repo_id="user/other-name")
    assert online(loaded, "user/my-model")["sam_rho"] == 0.15
    assert online(loaded, "user/other-name")["optim"] == "sam"
    assert (folder / "sharpness_config.json").read_bytes() == hub.repos["user/my-model"].files("main")[1][
        "sharpness_config.json"
    ]


def test_the_config_travels_with_the_model(hub: Hub, online: Client, tmp_path: Path) -> None:
    online(trained_and_pushed, tmp_path / "trained", None)  # the folder names the repo
    files = hub.repos["user/trained"].files("main")[1]
    assert {"config.json", "model.safetensors", "README.md", "sharpness_config.json"} <= set(files)
    assert loaded_values(online(loaded, "user/trained")) == ("wsam", 0.2, 0.8)
    card = files["README.md"].decode()
    assert "`--sharpness_config user/trained` trains with them" in card
    assert "- wsam" in card


def test_the_config_travels_with_every_save(hub: Hub, online: Client, tmp_path: Path) -> None:
    """With hub_strategy=every_save a checkpoint's files go to the repo by way of the output folder."""
    folder = tmp_path / "every"
    online(
        trained_and_pushed,
        folder,
        "user/every",
        push_to_hub=True,
        hub_strategy="checkpoint",
        save_steps=1,
        hub_always_push=True,
    )
    by_training = [files for files in hub.repos["user/every"].commits.values() if "model.safetensors" in files]
    assert len(by_training) >= 2
    assert all("sharpness_config.json" in files for files in by_training)
    assert "last-checkpoint/sharpness_config.json" in by_training[-1]


# Recipes


def test_a_recipe_from_the_hub(hub: Hub, online: Client) -> None:
    hub.commit("user/recipe", {"recipe.yaml": RECIPE})
    hub.commit("user/recipe", {"recipe.yaml": RECIPE + b"# v1\n"}, revision="v1")
    hub.commit("user/gated-recipe", {"recipe.yaml": RECIPE}, gated=True)
    assert online(recipe, "user/recipe") == RECIPE
    assert online(recipe, "user/recipe@v1") == online(recipe, "user/recipe", revision="v1") == RECIPE + b"# v1\n"
    with pytest.raises(ValueError, match=r"recipe user/gated-recipe: .* is gated"):
        online(recipe, "user/gated-recipe")
    assert online(recipe, "user/gated-recipe", token=Hub.TOKEN) == RECIPE
    with pytest.raises(
        ValueError, match=r"recipe user/recipes: no local file or folder, and the repo .* does not exist"
    ):
        online(recipe, "user/recipes")
    hub.commit("user/bomb", {"recipe.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\n"})
    with pytest.raises(ValueError, match=r"user/bomb/recipe.yaml: line 1: aliases and anchors are not allowed"):
        online(recipe, "user/bomb")
