"""Tiny models with random weights in folders, with what reads their input, as `from_pretrained` finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.text import WORDS


def save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **size)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def save_bert(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(folder)


def save_models(tokenizer: Any, folder: Path) -> None:
    """`bert`, `llama`, `bart` and `vit`, each with what reads its input."""
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForCausalLM,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    bart = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        **ids,
    )
    torch.manual_seed(0)
    models = {
        "bert": BertForMaskedLM(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=64, **ids)),
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=16, max_position_embeddings=64, **ids)),
        "bart": BartForConditionalGeneration(bart),
        "vit": ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=4,
                num_channels=3,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                num_labels=2,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        if name == "vit":
            ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / name)
        else:
            tokenizer.save_pretrained(folder / name)
