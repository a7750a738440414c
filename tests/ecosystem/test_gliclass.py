"""GLiClass's Trainer, which has a whole training_step of its own, where it is installed (`make test-libraries`)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import SGD, Record, Spec, flat, reference_run
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedTokenizerFast

from hf_sharpness import SharpnessArguments, SharpnessTrainerMixin

pytest.importorskip("gliclass")

STEPS, LR = 3, 0.1
LABELS = ["person", "city", "food"]
WORDS = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
WORDS += ["Ada", "met", "Bob", "in", "Rome", "saw", "Paris", ".", *LABELS]
TOKENS = {"class": "<<LABEL>>", "text": "<<SEP>>", "example": "<<EXAMPLE>>"}
TEXTS = {
    "Ada met Bob in Rome .": ["person", "city"],
    "Bob saw Paris .": ["person", "city"],
    "Paris .": ["city"],
    "Ada saw Bob": ["person"],
}
SPECS = [
    Spec("sam", "sam", {"rho": 0.05}),
    Spec("wsam-coupled", "wsam", {"rho": 0.05, "mode": "coupled", "gamma": 0.5}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.05, "mode": "decoupled", "gamma": 0.5}),
    Spec("xsam", "xsam", {"rho": 0.05}),
]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    made = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    made.add_tokens(list(TOKENS.values()), special_tokens=True)
    return made


def tiny() -> Any:
    """A GLiClass of one layer with random float64 weights, without dropout."""
    from gliclass import GLiClassModel, GLiClassModelConfig

    ids = tokenizer().convert_tokens_to_ids(list(TOKENS.values()))
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = len(WORDS) + len(TOKENS)
    config = GLiClassModelConfig(
        encoder_config=BertConfig(vocab_size=vocabulary, **sizes, **no_dropout),
        encoder_model="none",
        vocab_size=vocabulary,
        problem_type="multi_label_classification",
        prompt_first=True,
        initializer_range=0.1,
        dropout=0.0,
        scorer_attn_dropout=0.0,
        **{f"{name}_token_index": number for name, number in zip(TOKENS, ids, strict=True)},
    )
    torch.manual_seed(0)
    return GLiClassModel(config).double()


def rows() -> Any:
    from gliclass.data_processing import AugmentationConfig, GLiClassDataset

    texts = [{"text": text, "all_labels": list(LABELS), "true_labels": true} for text, true in TEXTS.items()]
    options = {"shuffle_labels": False, "prompt_first": True, "max_length": 32}
    return GLiClassDataset(texts * 2 * STEPS, tokenizer(), AugmentationConfig(enabled=False), **options)


def collator() -> Any:
    from gliclass.data_processing import DataCollatorWithPadding

    return DataCollatorWithPadding(device="cpu")


def trained(model: Any, folder: Path, door: str, **options: Any) -> Any:
    """Optimizer steps of two micro-batches, the rows in order.

    With the mixin before it GLiClass's step is what lies below; under `hf-sharpness run` it is the outermost one.
    """
    from gliclass.training import Trainer, TrainingArguments

    @dataclasses.dataclass
    class Arguments(SharpnessArguments, TrainingArguments):
        pass

    class Ordered(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Below(SharpnessTrainerMixin, Ordered):
        pass

    class Outermost(Below):
        training_step = Trainer.training_step

    arguments = (TrainingArguments if door == "stock" else Arguments)(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=STEPS,
        learning_rate=LR,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        per_device_train_batch_size=len(TEXTS) // 2,
        gradient_accumulation_steps=2,
        **options,
    )
    model = copy.deepcopy(model)
    # Its create_optimizer asks transformers' own Trainer, which knows no optim of this package.
    optimizers = (torch.optim.SGD(model.parameters(), lr=LR), None)
    trainer = {"stock": Ordered, "below": Below, "outermost": Outermost}[door](
        model=model, args=arguments, train_dataset=rows(), data_collator=collator(), optimizers=optimizers
    )
    trainer.train()
    return trainer


def sums(model: nn.Module, micro_batches: Sequence[Any]) -> list[Tensor]:
    """GLiClass's step leaves every micro-batch its whole loss."""
    return [model(**batch, max_num_classes=len(LABELS))["loss"] for batch in micro_batches]


def by_hand(model: Any, spec: Spec | None) -> list[Record]:
    size, items = len(TEXTS) // 2, list(map(rows().__getitem__, range(2 * STEPS * len(TEXTS) // 2)))
    batches = [collator()(items[start : start + size]) for start in range(0, len(items), size)]
    batches = [{key: value for key, value in batch.items() if isinstance(value, Tensor)} for batch in batches]
    steps = [batches[start : start + 2] for start in range(0, len(batches), 2)]
    return reference_run(model, steps, spec and spec.reference(), SGD(), [LR] * STEPS, losses=sums)


@pytest.mark.parametrize("door", ["below", "outermost"])
def test_gliclass_at_rho_0_is_stock(door: str, tmp_path: Path) -> None:
    model = tiny()
    stock = trained(model, tmp_path, "stock", optim="sgd")
    ours = trained(model, tmp_path, door, optim="sam", base_optim="sgd", sam_rho=0.0)
    assert torch.equal(flat(ours.model), flat(stock.model))
    torch.testing.assert_close(flat(stock.model), by_hand(model, None)[-1].weights, rtol=0, atol=1e-8)
    losses = [[entry["loss"] for entry in made.state.log_history if "loss" in entry] for made in (ours, stock)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("door", ["below", "outermost"])
def test_gliclass_equals_a_plain_reference(door: str, spec: Spec, tmp_path: Path) -> None:
    """In float64, but for rho and what GLiClass itself computes in float32."""
    model = tiny()
    ours = trained(model, tmp_path, door, base_optim="sgd", **spec.arguments())
    expected, stock = by_hand(model, spec)[-1].weights, by_hand(model, None)[-1].weights
    effect = (expected - stock).norm()
    assert effect > 1e-3
    assert (flat(ours.model) - expected).norm() < 1e-5 * effect
