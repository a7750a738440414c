"""The models that costs are measured on, each with a batch of random data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

Batch = dict[str, Tensor]


@dataclasses.dataclass
class Subject:
    """A model with its batch.

    Attributes:
        make: makes the model, the same in every call.
        item: makes one example, without its label.
        batch: examples in a batch.
        describe: the two in words.
    """

    make: Callable[[], nn.Module]
    item: Callable[[], Batch]
    batch: int
    describe: str
    labels: int = 10

    def model(self, device: torch.device) -> nn.Module:
        """The model on the device, in training mode."""
        torch.manual_seed(0)
        with device:
            return self.make().train()

    def million_weights(self) -> float:
        """How large the model is."""
        return sum(p.numel() for p in self.model(torch.device("meta")).parameters()) / 1e6

    def examples(self, number: int) -> list[dict[str, Any]]:
        """That many examples, each with a label, the same in every call."""
        torch.manual_seed(1)
        return [{**self.item(), "labels": int(torch.randint(0, self.labels, ()))} for _ in range(number)]

    def batches(self, device: torch.device, micro_batches: int = 1) -> list[Batch]:
        """The micro-batches of a step, together one batch."""
        found = self.examples(self.batch)
        size = self.batch // micro_batches
        return [collate(found[i * size : (i + 1) * size], device) for i in range(micro_batches)]


def collate(examples: list[dict[str, Any]], device: torch.device | str = "cpu") -> Batch:
    """Examples as one batch."""
    return {key: torch.stack([torch.as_tensor(e[key]) for e in examples]).to(device) for key in examples[0]}


def vit(hidden: int, layers: int, size: int, patch: int, batch: int) -> Subject:
    """A vision transformer with heads of 64 (fewer than 64 units: one head)."""
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        image_size=size,
        patch_size=patch,
        num_labels=10,
    )
    return Subject(
        lambda: ViTForImageClassification(config),
        lambda: {"pixel_values": torch.randn(3, size, size)},
        batch,
        f"ViT of {layers} layers x {hidden} on {size} x {size} pixels in patches of {patch}, batch {batch}",
    )


def bert(hidden: int, layers: int, length: int, batch: int) -> Subject:
    """A BERT classifier (without dropout it would be no usual one)."""
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        num_labels=10,
    )
    return Subject(
        lambda: BertForSequenceClassification(config),
        lambda: {"input_ids": torch.randint(0, config.vocab_size, (length,))},
        batch,
        f"BERT of {layers} layers x {hidden}, batch {batch} x {length} tokens",
    )


def subject(name: str, batch: int | None = None) -> Subject:
    """A subject by name, with another batch size if one is given."""
    made = SUBJECTS[name]()
    return (
        made
        if batch is None
        else dataclasses.replace(
            made, batch=batch, describe=made.describe.replace(f"batch {made.batch}", f"batch {batch}")
        )
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "vit-tiny": lambda: vit(192, 12, 32, 4, 16),
    "vit-base": lambda: vit(768, 12, 224, 16, 64),
    "vit-large": lambda: vit(1024, 24, 32, 4, 4),
    "bert-base": lambda: bert(768, 12, 128, 32),
    "smallest": lambda: vit(32, 2, 8, 4, 4),
}
