"""Model cards of TRL's trainers and of PEFT adapters: our section and tags beside theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from models.text import WORDS, language_model, tokenizer

from hf_sharpness import SharpnessArguments, SharpnessTrainerMixin
from hf_sharpness.training.card import TAG


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text."""
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def sft(folder: Path, sharp: bool, lora: bool) -> Any:
    """A TRL trainer that has trained for two steps on a model saved in a folder."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    base = folder / "base"
    language_model().save_pretrained(base)
    tokenizer().save_pretrained(base)
    config, trainer = trl.SFTConfig, trl.SFTTrainer
    if sharp:
        config = dataclass(type("Config", (SharpnessArguments, config), {"__module__": __name__}))
        globals()["Config"] = config  # where pickle looks for it
        trainer = type("Mixed", (SharpnessTrainerMixin, trainer), {})
    options: dict[str, Any] = {}
    if lora:
        peft = pytest.importorskip("peft")
        options["peft_config"] = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    args = config(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **({"optim": "wsam", "sam_rho": 0.2} if sharp else {}),
    )
    made = trainer(
        model=str(base),
        args=args,
        train_dataset=datasets.Dataset.from_list([{"text": " ".join(WORDS)}] * 16),
        processing_class=tokenizer(),
        **options,
    )
    made.train()
    return made


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_trl(lora: bool, tmp_path: Path) -> None:
    """All that TRL's and PEFT's own cards say is still there, whether the card is made before or after saving."""
    cards = {}
    for sharp in (False, True):
        folder = tmp_path / ("sharp" if sharp else "stock")
        trainer = sft(folder, sharp, lora)
        trainer.save_model()
        trainer.create_model_card(model_name="out", tags="mine")
        cards[sharp] = card(folder / "out")
        trainer.create_model_card(model_name="out", tags="mine")
        trainer.save_model()  # PEFT writes into the card that is there, with tags of the model's alone
        assert {TAG, "wsam"} & set(card(folder / "out")[0]["tags"]) == ({TAG, "wsam"} if sharp else set())
        assert card(folder / "out")[1].count("### Sharpness-aware minimization: WSAM") == sharp
    (theirs, their_text), (ours, our_text) = cards[False], cards[True]
    assert set(ours["tags"]) == {*theirs["tags"], TAG, "wsam"}
    assert {"trl", "sft", "mine"} <= set(ours["tags"])
    for key, value in theirs.items():
        if key not in ("tags", "base_model"):
            assert ours[key] == value
    assert {"base_model"} & theirs.keys() == {"base_model"} & ours.keys()
    lines = set(our_text.splitlines())
    missing = [line for line in their_text.splitlines() if line not in lines and str(tmp_path) not in line]
    assert not missing
    assert "- sam_rho: 0.2" in lines
    assert "arxiv.org/abs/2305.15817" in our_text
    assert "yue2023wsam" in our_text
    assert "- sharpness: " in our_text
    assert (
        our_text.index("# Model Card for out") < our_text.index("### Sharpness-aware") < our_text.index("### Framework")
    )


def test_an_adapter_without_trl(train: Any, tmp_path: Path) -> None:
    """transformers' Trainer and a PEFT model: the adapter's card has library and base model as with a stock Trainer."""
    peft = pytest.importorskip("peft")
    cards = {}
    for stock in (True, False):
        language_model().save_pretrained(tmp_path / "base")
        model = type(language_model()).from_pretrained(tmp_path / "base")
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
        items = [{"input_ids": [i % 15, 3, 4], "labels": [i % 15, 3, 4]} for i in range(16)]
        library = __import__("transformers" if stock else "hf_sharpness")
        args = library.TrainingArguments(
            str(tmp_path / "out" / str(stock)),
            use_cpu=True,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            optim="adamw_torch" if stock else "xsam",
        )
        trainer = library.Trainer(model=adapted, args=args, train_dataset=items)
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
        cards[stock] = card(Path(args.output_dir))
    theirs, (ours, our_text) = cards[True][0], cards[False]
    assert set(ours["tags"]) == {*theirs["tags"], TAG, "xsam"}
    assert {k: v for k, v in ours.items() if k not in ("tags", "model-index", "model_name")} == {
        k: v for k, v in theirs.items() if k not in ("tags", "model-index", "model_name")
    }
    assert ours["library_name"] == "peft"
    assert "### Sharpness-aware minimization: XSAM" in our_text
    assert "### Framework versions" in our_text
    assert "PEFT" in our_text
