"""The Trainer's ways with data, each with every method: streams, groups by length, names of labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers
from models import Batch, Net, classification, collate
from reference import Spec, flat, reference_run
from specs_of_modes import BASE, MAX_NORM, without_decay
from torch import nn
from torch.utils.data import IterableDataset
from trainer_modes import ITEMS, SGD, as_stock, assert_stock_at_rho_0, bert, by_method

import hf_sharpness


class Stream(IterableDataset):
    def __init__(self, items: list[Batch]):
        self.items = items

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.items)


@as_stock
@pytest.mark.shows(
    mode="IterableDataset, max_steps, epochs that end within an accumulation: rho 0 = stock", result="exact"
)
def test_stream_is_stock_at_rho_0(spec: Spec, train: Any) -> None:
    """Five micro-batches an epoch, two a step: the fifth waits for the first of the next epoch, as in stock."""
    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    assert_stock_at_rho_0(train, spec, Net(), Stream(ITEMS[:20]), **options)


@by_method
@pytest.mark.shows(mode="IterableDataset, max_steps = the same items in a list", result="exact")
def test_stream_is_a_list(spec: Spec, train: Any) -> None:
    arguments = {"max_steps": 6, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    runs = [train(Net(), items, **arguments) for items in (Stream(ITEMS), ITEMS)]
    assert torch.equal(runs[0].weights[-1], runs[1].weights[-1])


def waiting_losses(model: nn.Module, micro_batches: Sequence[Batch]) -> list[torch.Tensor]:
    """As stock Trainer weighs them: a micro-batch alone at the end of the stream by 1, two together by 1/2 each."""
    weights = {1: [1.0], 2: [0.5, 0.5], 3: [1.0, 0.5, 0.5]}[len(micro_batches)]
    return [model(**batch)["loss"] * weight for batch, weight in zip(micro_batches, weights, strict=True)]


@by_method
@pytest.mark.shows(
    mode="IterableDataset, epochs that end within an accumulation", brief="IterableDataset", result="exact"
)
def test_stream_with_a_remainder(spec: Spec, train: Any) -> None:
    """What waits for the next epoch is part of the effective batch there: in every pass, for every method. XSAM
    searches in the first step of each of the three epochs."""
    base = without_decay(BASE)
    items = classification(20)
    arguments = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    arguments |= {"max_grad_norm": MAX_NORM} | base.arguments() | spec.arguments()
    run = train(Net().double(), Stream(items), **arguments)
    b = [collate(items[start : start + 4]) for start in range(0, 20, 4)]
    steps = [[b[0], b[1]], [b[2], b[3]], [b[4], b[0], b[1]], [b[2], b[3]], [b[4], b[0], b[1]], [b[2], b[3]]]
    records = reference_run(
        Net(), steps, spec.reference(), base.reference(), [base.lr] * 6, MAX_NORM, waiting_losses, (0, 2, 4)
    )
    for weights, record in zip(run.weights, records, strict=True):
        torch.testing.assert_close(weights, record.weights, rtol=0, atol=1e-9)


def uneven_sentences() -> list[dict[str, Any]]:
    return [{"input_ids": list(range(3 + 7 * n % 11)), "labels": n % 2} for n in range(40)]


def padded(items: list[dict[str, Any]]) -> Batch:
    longest = max(len(item["input_ids"]) for item in items)
    rows = [item["input_ids"] + [0] * (longest - len(item["input_ids"])) for item in items]
    return {"input_ids": torch.tensor(rows), "labels": torch.tensor([item["labels"] for item in items])}


NAMED = "train_sampling_strategy" in transformers.TrainingArguments.__dataclass_fields__
GROUPED = {"train_sampling_strategy": "group_by_length"} if NAMED else {"group_by_length": True}
"""The option, and what it was called before."""


@as_stock
@pytest.mark.shows(mode="train_sampling_strategy=group_by_length: rho 0 = stock", result="exact")
def test_group_by_length_is_stock_at_rho_0(spec: Spec, tmp_path: Any) -> None:
    runs = []
    for library, arguments in ((transformers, {}), (hf_sharpness, spec.arguments() | {"sam_rho": 0.0})):
        args = library.TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            **GROUPED,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            **arguments,
        )
        trainer = library.Trainer(bert(), args, train_dataset=uneven_sentences(), data_collator=padded)
        trainer.train()
        runs.append((flat(trainer.model), [e["loss"] for e in trainer.state.log_history if "loss" in e]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


class Renamed(Net):
    """Its labels have another name."""

    def forward(self, x: torch.Tensor, target: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return super().forward(x, target)


@as_stock
@pytest.mark.shows(mode="label_names: rho 0 = stock", result="exact")
def test_label_names_are_stock_at_rho_0(spec: Spec, train: Any) -> None:
    items = [{"x": item["x"], "target": item["labels"]} for item in ITEMS]
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "trainer_options": {"eval_dataset": items[:16]}}
    assert_stock_at_rho_0(train, spec, Renamed(), items, max_steps=4, label_names=["target"], **evaluation)


def test_sentences_have_different_lengths() -> None:
    """Guards the length-grouping test."""
    assert len({len(item["input_ids"]) for item in uneven_sentences()}) > 3
