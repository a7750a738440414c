"""A classifier and data for it that train in a second."""

from __future__ import annotations

from typing import Any

import torch


def classifier() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=8, **sizes))


ITEMS = [{"input_ids": [i % 16, (3 * i) % 16, 1], "labels": i % 2} for i in range(32)]
