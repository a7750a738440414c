"""The correction from a batch's first examples, without accumulation: against SAM and WSAM by autograd alone."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import pytest
import torch
from models import Batch, MaskRecorder, Net, TinyLM, accumulate, classification, sentences, steps_of
from reference import BASES, Base, Spec, flat
from test_fraction import EXACT, PARTS
from torch import Tensor, nn

import hf_sharpness
from hf_sharpness.compare.observe import Observer
from hf_sharpness.training.first_examples import NoExamples, first_examples, number_of_examples

by_spec = pytest.mark.parametrize("spec", PARTS, ids=str)


def by_examples(model: nn.Module, spec: Spec, base: Base, steps: Any, loss_of: Any, size: int) -> list[Tensor]:
    """The weights after every step of SAM or WSAM, in float64 and by autograd alone."""
    model, settings = copy.deepcopy(model), spec.settings
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = base.torch(params)
    a = settings["gamma"] / (1 - settings["gamma"]) if "gamma" in settings else 1.0
    seen = []

    def gradient(batch: Batch) -> list[Tensor]:
        return list(torch.autograd.grad(loss_of(model, batch), params))

    for batch in steps:
        part = {key: value[:size] for key, value in batch.items()}
        start = [p.detach().clone() for p in params]
        g, here = gradient(batch), gradient(part)
        T = [p.detach().abs() if settings.get("adaptive") else torch.ones_like(p) for p in params]
        norm = torch.stack([(t * x).norm() for t, x in zip(T, g, strict=True)]).norm()
        with torch.no_grad():
            for p, t, x in zip(params, T, g, strict=True):
                p += settings["rho"] * t**2 * x / (norm + 1e-12)
        there = gradient(part)
        term = [a * (t - h) for t, h in zip(there, here, strict=True)]
        decoupled = settings.get("mode") == "decoupled"
        with torch.no_grad():
            for p, w, x, t in zip(params, start, g, term, strict=True):
                p.copy_(w)
                p.grad = x if decoupled else x + t
        optimizer.step()
        if decoupled:
            with torch.no_grad():
                for p, t in zip(params, term, strict=True):
                    p -= base.lr * t
        seen.append(flat(model))
    return seen


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch)["loss"]


@pytest.mark.parametrize("base", BASES, ids=str)
@by_spec
def test_examples_of_one_batch_in_a_plain_loop(spec: Spec, base: Base) -> None:
    model = Net().double()
    batches = [step[0] for step in steps_of(classification(48), 8)]
    size = max(1, round(spec.settings["fraction"] * 8))
    expected = by_examples(model, spec, base, batches, mean_loss, size)
    optimizer = base.torch(model.parameters())
    method, weights = spec.ours(model, optimizer), []
    for batch in batches:
        part = {key: value[:size] for key, value in batch.items()}
        method.backward(
            functools.partial(accumulate, model, batch, 1), part=functools.partial(accumulate, model, part, 1)
        )
        optimizer.step()
        optimizer.zero_grad()
        weights.append(flat(model))
    torch.testing.assert_close(torch.stack(weights), torch.stack(expected), **EXACT)
    assert method.engine.course.progress.repeated == 2 * spec.settings["fraction"] * len(batches)


ONE_BATCH = {"max_grad_norm": 0.0, "num_train_epochs": 1, "per_device_train_batch_size": 8}


@by_spec
def test_examples_of_one_batch_in_the_trainer(spec: Spec, train: Any) -> None:
    """The loss is a sum over the given count of items: those of the part, when that is gone through."""
    items, base = sentences(48), BASES[0]
    for number, item in enumerate(items):
        item["labels"][: 1 + number % 5] = -100  # the first is no target by any way of counting
    model = TinyLM().double()
    batches = [step[0] for step in steps_of(items, 8)]
    size = max(1, round(spec.settings["fraction"] * 8))
    expected = by_examples(model, spec, base, batches, mean_loss, size)
    run = train(model, items, **spec.arguments() | base.arguments() | ONE_BATCH)
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(expected), **EXACT)


def test_sharpness_compares_the_part_with_itself(train: Any) -> None:
    run = train(Net().double(), classification(16), optim="sam", sam_fraction=0.25, sam_rho=1e-9, **ONE_BATCH)
    assert run.series("sharpness") == pytest.approx([0.0, 0.0], abs=1e-6)


class Noisy(nn.Module):
    """What a pass changes and draws: running statistics and a dropout mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), MaskRecorder(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


def test_the_batchs_own_pass_is_stock_and_both_passes_over_a_part_have_one_mask(train: Any) -> None:
    """At rho 0 the difference is nought: running statistics and dropout's stream are those of a stock run."""
    model, items = Net(Noisy), classification(24, torch.float32)
    stock = train(model, items, stock=True, **ONE_BATCH)
    ours = train(model, items, optim="sam", sam_rho=0.0, sam_fraction=0.25, sam_check="off", **ONE_BATCH)
    torch.testing.assert_close(torch.stack(ours.weights), torch.stack(stock.weights), rtol=0, atol=1e-5)
    for a, b in zip(ours.model.buffers(), stock.model.buffers(), strict=True):
        assert torch.equal(a, b)
    masks = ours.model.middle.drop.masks
    assert [len(mask) for mask in masks] == [8, 2, 2] * 3
    assert torch.equal(masks[1], masks[2])
    for ours_mask, stock_mask in zip(masks[::3], stock.model.middle.drop.masks, strict=True):
        assert torch.equal(ours_mask, stock_mask)


def test_the_gradient_of_the_batch_is_stock_bit_for_bit() -> None:
    """Decoupled WSAM hands it to the base optimizer as it is."""
    model, twin = Net(Noisy), Net(Noisy)
    batch = steps_of(classification(8, torch.float32), 8)[0][0]
    part = {key: value[:2] for key, value in batch.items()}
    torch.manual_seed(0)
    accumulate(twin, batch, 1)
    method = PARTS[4].ours(model, BASES[0].torch(model.parameters()))
    torch.manual_seed(0)
    method.backward(functools.partial(accumulate, model, batch, 1), part=functools.partial(accumulate, model, part, 1))
    for ours, stock in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, stock.grad)


def test_the_trainer_counts_parts(train: Any, capsys: Any) -> None:
    flops = [
        train(Net(), classification(16, torch.float32), **settings, **ONE_BATCH).trainer.state.total_flos
        for settings in ({"optim": "adamw_torch"}, {"optim": "sam", "sam_fraction": 0.25, "sam_check": "off"})
    ]
    said = capsys.readouterr().err
    assert flops[1] == 1.5 * flops[0]
    assert re.search(r"fraction 0.25, on \w+; 1.5 passes a step", said)
    assert re.search(r"; 3 forward and backward passes, where \w+ alone makes 2", said)


@pytest.mark.parametrize(("accumulation", "passes"), [(1, 1.5), (2, 1.5)])
def test_compare_counts_parts(accumulation: int, passes: float, train: Any) -> None:
    """A quarter of the examples at two weights, and half of two micro-batches at one."""
    observer = Observer()
    settings = {"optim": "sam", "sam_fraction": 0.25 * accumulation, "gradient_accumulation_steps": accumulation}
    train(Net(), classification(32, torch.float32), callbacks=[observer], **settings, **ONE_BATCH)
    assert observer.passes == passes


def test_the_last_batch_of_an_epoch_is_split_as_any_other(train: Any) -> None:
    model, base, spec = Net().double(), BASES[0], PARTS[2]
    items = classification(12)
    batches = [step[0] for step in steps_of(items, 8)]
    assert [len(batch["labels"]) for batch in batches] == [8, 4]
    first = by_examples(model, spec, base, batches[:1], mean_loss, 2)
    run = train(model, items, **spec.arguments() | base.arguments() | ONE_BATCH)
    torch.testing.assert_close(run.weights[0], first[0], **EXACT)
    second = by_examples(run_from(first[0]), spec, base, batches[1:], mean_loss, 1)
    torch.testing.assert_close(run.weights[1], second[0], **EXACT)


def run_from(weights: Tensor) -> nn.Module:
    model = Net().double()
    nn.utils.vector_to_parameters(weights, model.parameters())
    return model


TOLD = {
    "a tensor of another length": (
        {"x": torch.ones(4, 2), "lengths": torch.ones(5)},
        "of x is 4, and that of lengths is 5",
    ),
    "a number in a tensor": ({"x": torch.ones(4, 2), "scale": torch.ones(())}, "scale has no dimension"),
    "a list": ({"x": torch.ones(4, 2), "names": ["a"]}, "names has 1 elements"),
    "an object": ({"x": torch.ones(4, 2), "graph": object()}, "graph is a object"),
    "padding-free": (
        {"input_ids": torch.ones(1, 9), "labels": torch.ones(1, 9), "position_ids": torch.ones(1, 9)},
        "packed, or padding-free",
    ),
    "padding-free with lengths": ({"input_ids": torch.ones(1, 9), "cu_seq_lens_q": torch.ones(3)}, "is 1, and that"),
    "nothing": ({"flag": True}, "it has no tensors"),
}


@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
def test_examples_that_cannot_be_told_apart(told: Any) -> None:
    with pytest.raises(NoExamples, match=told[1]):
        number_of_examples(told[0])


def test_the_first_examples() -> None:
    inputs = {
        "x": torch.arange(12).reshape(4, 3),
        "names": ["a", "b", "c", "d"],
        "image": {"pixels": torch.arange(4)},
        "return_loss": True,
        "labels": [{"boxes": torch.ones(n, 4)} for n in range(4)],
    }
    assert number_of_examples(inputs) == 4
    first = first_examples(inputs, 2)
    assert first["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert first["image"]["pixels"].tolist() == [0, 1]
    assert (first["names"], first["return_loss"]) == (["a", "b"], True)
    assert [len(label["boxes"]) for label in first["labels"]] == [0, 1]


def test_a_packed_batch_is_refused_with_the_remedy(train: Any) -> None:
    class Packing(Net):
        def forward(self, x: Tensor, labels: Tensor, lengths: Tensor) -> Any:
            return super().forward(x, labels)

    def pack(items: list[Batch]) -> Batch:
        return {key: torch.stack([item[key] for item in items]) for key in items[0]} | {"lengths": torch.tensor([3, 5])}

    with pytest.raises(ValueError, match=r"sam_fraction=0.5 takes the first examples.*gradient_accumulation_steps"):
        train(
            Packing(),
            classification(8, torch.float32),
            optim="sam",
            sam_fraction=0.5,
            **ONE_BATCH,
            trainer_class=collating(pack),
        )


def collating(collator: Any) -> type:
    class Collating(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"data_collator": collator})

    return Collating


def test_a_batch_that_the_trainer_makes_is_refused(train: Any) -> None:
    class Preparing(hf_sharpness.Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return super()._prepare_inputs(inputs)

    class Doubling(hf_sharpness.Trainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
            super().training_step(model, inputs, *args)
            return super().training_step(model, inputs, *args)

    settings = {"optim": "sam", "sam_fraction": 0.5, **ONE_BATCH}
    for trainer_class, why in ((Preparing, "own _prepare_inputs"), (Doubling, "does more to the gradient")):
        with pytest.raises(ValueError, match=f"{why}.*gradient_accumulation_steps"):
            train(Net(), classification(8, torch.float32), trainer_class=trainer_class, **settings)
