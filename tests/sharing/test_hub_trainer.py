"""What a Trainer saves beside the model: the config that reproduces the run, and the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from models import Net, classification
from models.text import ITEMS, classifier

import hf_sharpness
from hf_sharpness.methods import METHODS

COMMON = {
    "max_steps": 4,
    "logging_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_steps": 2,
}
NAME = "sharpness_config.json"


def trained(folder: Path, library: Any = hf_sharpness, **arguments: Any) -> Any:
    args = library.TrainingArguments(str(folder), **COMMON | arguments)
    trainer = library.Trainer(model=classifier(), args=args, train_dataset=ITEMS)
    trainer.train()
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def card(trainer: Any, **options: Any) -> tuple[dict[str, Any], str]:
    """Metadata and text of the card."""
    trainer.create_model_card(**options)
    text = Path(trainer.args.output_dir, "README.md").read_text()
    _, metadata, text = text.split("---\n", 2)
    return yaml.safe_load(metadata), text


@pytest.mark.parametrize(
    "arguments",
    [
        {"optim": "sam", "sam_rho": 0.2, "sam_adaptive": True, "sam_steps": 2},
        {"optim": "wsam", "sam_rho": 0.1},
        {"optim": "wsam", "base_optim": "sgd", "wsam_gamma": 0.8, "sam_scope": "micro_batch"},
        {"optim": "xsam", "sam_rho": 0.1, "xsam_refresh": 2, "xsam_alpha_points": 3},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_the_saved_config_reproduces_the_run(arguments: dict[str, Any], tmp_path: Path) -> None:
    first = trained(tmp_path / "first", **arguments, learning_rate=0.1)
    first.save_model()
    first.save_model(str(tmp_path / "elsewhere"))
    expected = (tmp_path / "first" / NAME).read_bytes()
    for folder in ("first/checkpoint-2", "first/checkpoint-4", "elsewhere"):
        assert (tmp_path / folder / NAME).read_bytes() == expected
    again = trained(tmp_path / "again", sharpness_config=str(tmp_path / "first"), learning_rate=0.1)
    assert torch.equal(weights(again), weights(first))
    assert not torch.equal(weights(again), weights(trained(tmp_path / "stock", learning_rate=0.1)))


def test_only_the_rank_that_saves_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(tmp_path, optim="sam", save_strategy="no")
    monkeypatch.setattr(hf_sharpness.TrainingArguments, "should_save", False)
    trainer.save_model(str(tmp_path / "other-rank"))
    assert not (tmp_path / "other-rank" / NAME).exists()


def test_saving_a_model_leaves_a_card_where_there_is_none(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", optim="sam", sam_rho=0.2)
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert trainer.args.output_dir == str(tmp_path / "run")
    for folder in ("run", "elsewhere"):
        text = (tmp_path / folder / "README.md").read_text()
        assert "- sam_rho: 0.2" in text
        assert "This model was trained on an unknown dataset." in text
        assert "[](" not in text
    assert not (tmp_path / "run" / "checkpoint-4" / "README.md").exists()
    (tmp_path / "run" / "README.md").write_text("# mine\n")
    trainer.save_model()
    assert (tmp_path / "run" / "README.md").read_text() == "# mine\n"


def test_a_card_of_a_model_without_a_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers writes none."""
    args = hf_sharpness.TrainingArguments(str(tmp_path / "run"), **COMMON, optim="sam", sam_rho=0.2)
    trainer = hf_sharpness.Trainer(model=Net(), args=args, train_dataset=classification(8, torch.float32))
    trainer.train()
    trainer.save_model()
    assert "no model card" not in caplog.text
    assert (tmp_path / "run" / "README.md").is_file()
    metadata, text = card(trainer)
    assert metadata["tags"] == ["sharpness-aware-minimization", "sam"]
    assert text.startswith("# run\n\nA `Net`, trained")
    assert "- sam_rho: 0.2" in text


def test_a_model_is_saved_also_where_no_card_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(tmp_path, optim="sam", save_strategy="no")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no card today")

    monkeypatch.setattr(trainer, "create_model_card", fail)
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "model.safetensors").exists()
    assert "no card today" in caplog.text
    assert trainer.args.output_dir == str(tmp_path)


def test_nothing_changes_with_a_stock_optimizer(tmp_path: Path) -> None:
    cards = {}
    for library in (transformers, hf_sharpness):
        folder = tmp_path / library.__name__ / "run"
        trainer = trained(folder, library)
        trainer.save_model()
        cards[library] = card(trainer, tags="mine")
        assert not list(folder.rglob(NAME))
    assert cards[transformers] == cards[hf_sharpness]


@pytest.mark.parametrize("push", [False, True])
def test_a_stock_run_removes_the_config_of_an_earlier_one(
    push: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(tmp_path / "run", save_strategy="no")
    trainer.args.push_to_hub = push
    monkeypatch.setattr(type(trainer), "push_to_hub", lambda *args, **kwargs: None)
    earlier = hf_sharpness.SharpnessArguments(optim="wsam")
    folders = [tmp_path / "run", tmp_path / "elsewhere"]
    for folder in folders:
        earlier.save_pretrained(folder)
    monkeypatch.setattr(hf_sharpness.TrainingArguments, "should_save", False)
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert [(folder / NAME).exists() for folder in folders] == [True, True]
    monkeypatch.undo()
    monkeypatch.setattr(type(trainer), "push_to_hub", lambda *args, **kwargs: None)
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert [(folder / NAME).exists() for folder in folders] == [not push, False]
    trainer.save_model()
    assert not list(tmp_path.rglob(NAME))


@pytest.mark.parametrize("content", [b"", b"{", b'{"mine": 1}', b'{"format_version": 1, "optim": "sgd"}', b"\xff"])
def test_a_file_that_is_not_an_earlier_runs_stays(content: bytes, tmp_path: Path) -> None:
    trainer = trained(tmp_path, save_strategy="no")
    (tmp_path / NAME).write_bytes(content)
    trainer.save_model()
    assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize("optim", METHODS)
def test_the_model_card(optim: str, tmp_path: Path) -> None:
    """transformers' own, and in it method, hyper-parameters, measured sharpness, papers and tags."""
    trainer = trained(tmp_path, optim=optim, sam_rho=0.2, sam_adaptive=optim == "sam")
    options = {"language": "en", "license": "mit", "tags": "mine", "model_name": "My model", "dataset": "digits"}
    metadata, text = card(
        trainer, **options, finetuned_from="user/base", tasks="text-classification", dataset_tags="digits"
    )
    assert metadata["tags"] == ["mine", "generated_from_trainer", "sharpness-aware-minimization", optim]
    assert (metadata["license"], metadata["base_model"], metadata["language"]) == ("mit", "user/base", ["en"])
    assert "# My model" in text
    assert trainer.args.base_optim.startswith("adamw_torch")  # fused where torch does that on every device
    assert f"- optimizer: Use {optim} around {trainer.args.base_optim} with betas=(0.9,0.999)" in text

    section = text.split("### Sharpness-aware minimization: ")[1].split("### Framework versions")[0]
    assert section.startswith(optim.upper())
    assert "- sam_rho: 0.2" in section
    assert "- sam_scope: global" in section
    assert ("- wsam_mode: coupled\n- wsam_gamma: 0.6" in section) == (optim == "wsam")
    logged = [entry for entry in trainer.state.log_history if "sharpness" in entry][-1]
    assert "at step 4" in section
    assert f"- sharpness: {logged['sharpness']:.6g}" in section
    assert f"- perturbed_loss: {logged['perturbed_loss']:.6g}" in section
    assert METHODS[optim].bibtex in section
    assert ("{ASAM}" in section) == (optim == "sam")
    assert text.count("### Framework versions") == 1


def test_a_card_is_completed_once(tmp_path: Path) -> None:
    trainer = trained(tmp_path, optim="wsam")
    first = card(trainer)
    assert card(trainer) == first
    path = tmp_path / "README.md"
    hf_sharpness.trainer.card.complete(path, trainer.args, None, [], ())
    text = path.read_text()
    assert text.count("### Sharpness-aware minimization") == 1
    assert "No sharpness was logged." in text


def test_a_card_without_metadata_or_a_card(tmp_path: Path) -> None:
    args = hf_sharpness.TrainingArguments(str(tmp_path), optim="sam", base_optim="sgd")
    path = tmp_path / "README.md"
    hf_sharpness.trainer.card.complete(path, args, None, [], ())
    assert not path.exists()
    path.write_text("# A card\n")
    hf_sharpness.trainer.card.complete(path, args, None, [], ())
    assert path.read_text().startswith("---\ntags:\n- sharpness-aware-minimization\n- sam\n---\n# A card\n\n<!--")


def test_every_paper_can_be_cited() -> None:
    for method in METHODS.values():
        assert f"{{{method.paper}}}" in method.bibtex


@pytest.mark.filterwarnings("ignore:none of the")
@pytest.mark.parametrize(("start", "sharp"), [(0.9, 0), (0.5, 2), (0.0, 4)])
def test_the_card_counts_the_sharpness_aware_steps(start: float, sharp: int, tmp_path: Path) -> None:
    """A training that ended before sharpness began does not claim it."""
    _, text = card(trained(tmp_path, optim="sam", sam_start=start, max_steps=4))
    counted = "The steps were sharpness-aware" if sharp == 4 else f"{sharp} of 4 optimizer steps were sharpness-aware"
    assert counted in text
    assert f"- sam_start: {start}" in text
    assert ("No sharpness was logged." in text) == (sharp == 0)
