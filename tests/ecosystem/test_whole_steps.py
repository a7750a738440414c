"""Library trainers with a whole training_step of their own, where they are installed (`make test-libraries`)."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_sharpness import SharpnessArguments, SharpnessTrainerMixin

gliner = pytest.importorskip("gliner")

WORDS = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
WORDS += ["<<ENT>>", "<<SEP>>", "Ada", "met", "Bob", "in", "Rome", "saw", "Paris", ".", "person", "city"]
ROWS = [
    {"tokenized_text": ["Ada", "met", "Bob", "in", "Rome", "."], "ner": [[0, 0, "person"], [4, 4, "city"]]},
    {"tokenized_text": ["Bob", "saw", "Paris", "."], "ner": [[0, 0, "person"], [2, 2, "city"]]},
] * 8


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A tiny GLiNER with random weights, without dropout."""
    from gliner.model import UniEncoderSpanGLiNER
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "encoder")
    encoder = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder.save_pretrained(tmp_path / "encoder")
    torch.manual_seed(0)
    return UniEncoderSpanGLiNER.load_from_config(
        {
            "model_name": str(tmp_path / "encoder"),
            "encoder_config": encoder.to_dict(),
            "hidden_size": 16,
            "max_width": 3,
            "dropout": 0.0,
        },
        backbone_from_pretrained=False,
    )


def trained(model: Any, folder: Path, ours: bool, **options: Any) -> Any:
    """Three optimizer steps of two micro-batches, the rows in order."""
    from gliner.data_processing.collator import SpanDataCollator
    from gliner.training import Trainer, TrainingArguments

    @dataclasses.dataclass
    class Arguments(SharpnessArguments, TrainingArguments):
        pass

    class Ordered(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Own(SharpnessTrainerMixin, Ordered):
        pass

    arguments = (Arguments if ours else TrainingArguments)(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=3,
        learning_rate=0.01,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **options,
    )
    collator = SpanDataCollator(model.config, data_processor=model.data_processor, prepare_labels=True)
    # Its create_optimizer asks transformers' own Trainer, which knows no optim of this package.
    optimizers = (torch.optim.SGD(model.parameters(), lr=0.01), None)
    trainer = (Own if ours else Ordered)(
        model=model, args=arguments, train_dataset=ROWS, data_collator=collator, optimizers=optimizers
    )
    trainer.train()
    return trainer


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_gliner_at_rho_0_is_stock(model: Any, tmp_path: Path) -> None:
    stock = trained(copy.deepcopy(model), tmp_path, ours=False, optim="sgd")
    ours = trained(copy.deepcopy(model), tmp_path, ours=True, optim="sam", base_optim="sgd", sam_rho=0.0)
    assert torch.equal(flat(ours.model), flat(stock.model))
    assert not torch.equal(flat(stock.model), flat(model))


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
def test_gliner_trains(optim: str, model: Any, tmp_path: Path) -> None:
    trainer = trained(model, tmp_path, ours=True, optim=optim, base_optim="sgd", sam_rho=0.1)
    logs = [entry for entry in trainer.state.log_history if "sharpness" in entry]
    assert len(logs) == 3
    assert all(entry["perturbation_norm"] == pytest.approx(0.1, rel=1e-3) for entry in logs)
    assert all(entry["sharpness"] > 0 for entry in logs)
