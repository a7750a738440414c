"""Models with dropout, frozen or unused weights, checkpointing or a sparse embedding in the Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import MaskRecorder, Net, TinyLM, classification, collate, sentences
from reference import BASES, Spec, flat
from torch import nn
from trainer_updates import ONE_OF_EACH, every_method
from transformers import TrainerCallback


class Gambler(TrainerCallback):
    """Draws random numbers between the micro-batches of a step."""

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        torch.rand(3)


ALONE = [Spec(f"{s}-alone", s.method, s.settings | {"scope": "micro_batch"}) for s in ONE_OF_EACH[:3]]


@pytest.mark.parametrize("spec", ONE_OF_EACH + ALONE, ids=str)
def test_every_pass_of_a_micro_batch_sees_the_same_mask(spec: Spec, train: Any) -> None:
    items = classification(48, torch.float32)
    arguments = spec.arguments() | {"gradient_accumulation_steps": 3, "max_steps": 1}
    run = train(Net(MaskRecorder), items, callbacks=[Gambler()], **arguments)
    masks = run.model.middle.masks
    distinct = [mask for i, mask in enumerate(masks) if not any(torch.equal(mask, earlier) for earlier in masks[:i])]
    assert len(distinct) == 3
    passes = len(masks) // 3
    assert passes >= 2
    for mask in distinct:
        assert sum(torch.equal(mask, other) for other in masks) == passes


@every_method
def test_frozen_and_never_used_parameters(spec: Spec, train: Any) -> None:
    """They stay as they are; the update of the others is that of a model without them."""
    base, items = BASES[2], classification(64)

    class Partial(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)
            self.first.weight.requires_grad_(False)

    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first.weight.requires_grad_(False)

    model = Partial().double()
    run = train(model, items, **spec.arguments() | base.arguments(), num_train_epochs=3)
    twin = train(Frozen().double(), items, **spec.arguments() | base.arguments(), num_train_epochs=3)
    torch.testing.assert_close(run.weights[-1][: len(twin.weights[-1])], twin.weights[-1], rtol=1e-12, atol=1e-12)
    assert torch.equal(flat(run.model.unused), flat(model.unused))
    assert torch.equal(run.model.first.weight, model.first.weight)


@every_method
def test_gradient_checkpointing(spec: Spec, train: Any) -> None:
    """Through the Trainer's own switch, on a transformers model with dropout."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=4,
        patch_size=2,
        num_channels=1,
        num_labels=3,
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    items = [
        {"pixel_values": torch.randn(1, 4, 4), "labels": item["labels"]} for item in classification(24, torch.float32)
    ]
    runs = [
        train(
            model,
            items,
            **spec.arguments() | BASES[2].arguments(),
            num_train_epochs=2,
            gradient_checkpointing=checkpointing,
            gradient_accumulation_steps=2,
        )
        for checkpointing in (False, True)
    ]
    torch.testing.assert_close(runs[0].weights[-1], runs[1].weights[-1], rtol=1e-6, atol=1e-7)


def test_a_sparse_embedding_is_refused(train: Any) -> None:
    model = TinyLM()
    model.embed = nn.Embedding(11, 6, sparse=True)
    run = train(model, sentences(8), optim="sam", base_optim="sgd", max_steps=1, max_grad_norm=0, catch=Exception)
    assert "sparse" in str(run.error).lower()
    assert torch.equal(flat(run.model), flat(model))


def test_collate_keeps_double_precision() -> None:
    assert collate(classification(2))["x"].dtype == torch.float64
