"""State of a Trainer's passes: generators, tallies, losses and batch objects count once; rho 0 is stock bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from models import Net, classification
from models.stateful import Loss, same
from torch import Tensor, nn
from torch.nn import functional as F

import hf_sharpness

ITEMS = classification(64, torch.float32)
OPTIONS = {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.1, "max_grad_norm": 0.0}
METHODS = [
    {"optim": "sam", "sam_rho": 0.0},
    {"optim": "sam", "sam_rho": 0.0, "sam_scope": "micro_batch"},
    {"optim": "wsam", "sam_rho": 0.0, "wsam_mode": "decoupled"},
]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())))
pytestmark = pytest.mark.checked


class Mixing:
    """Mixes rows by generators of its own, and keeps a tally in an object."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.numpy, self.torch, self.python = np.random.default_rng(0), torch.Generator(), random.Random(0)
        self.tally = Tally()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        x, labels = inputs["x"], inputs["labels"]
        order = torch.randperm(len(x), generator=self.torch)
        share = self.numpy.uniform() * self.python.uniform(0.5, 1.0)
        self.state.mixed = 1 + getattr(self.state, "mixed", 0)
        share = share / self.state.mixed
        logits = model(x=share * x + (1 - share) * x[order])["logits"]
        self.tally.update(logits, labels)
        loss = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[order])
        loss = loss / self.current_gradient_accumulation_steps
        return (loss, {"logits": logits}) if return_outputs else loss

    def what_is_left(self) -> Any:
        return (
            self.numpy.uniform(),
            torch.rand(2, generator=self.torch),
            self.python.random(),
            self.tally.state(),
            self.state.mixed,
        )


class Tally(nn.Module):
    """As torchmetrics' objects: numbers, tensors that are no buffers, lists."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.seen, self.batches = torch.zeros(()), 0, []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.right += (logits.argmax(1) == labels).sum()
        self.seen += len(labels)
        self.batches.append(float(logits.detach().mean()))

    def state(self) -> Any:
        return self.right.clone(), self.seen, list(self.batches)


def pair(own: type, method: dict[str, Any], train: Any, **options: Any) -> tuple[Any, Any]:
    model = Net(middle=lambda: nn.Dropout(0.3))
    stock = type("Stock", (own, transformers.Trainer), {})
    ours = type("Ours", (own, hf_sharpness.Trainer), {})
    options = OPTIONS | options
    return (
        train(model, ITEMS, trainer_class=stock, optim="sgd", stock=True, **options),
        train(model, ITEMS, trainer_class=ours, base_optim="sgd", **method, **options),
    )


@every_method
def test_generators_and_tallies(method: dict[str, Any], train: Any) -> None:
    stock, ours = pair(Mixing, method, train)
    assert all(torch.equal(a, b) for a, b in zip(stock.weights, ours.weights, strict=True))
    assert same(stock.trainer.what_is_left(), ours.trainer.what_is_left())
    assert max(map(abs, ours.series("sharpness"))) == 0


@every_method
def test_a_loss_function_with_state(method: dict[str, Any], train: Any) -> None:
    class Losing:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.module = Loss()
            self.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: self.module(
                outputs["logits"], labels
            )

    stock, ours = pair(Losing, method, train)
    assert all(torch.equal(a, b) for a, b in zip(stock.weights, ours.weights, strict=True))
    assert same(stock.trainer.module.state(), ours.trainer.module.state())


class Counting:
    """Counts in its arguments, and draws from its dataset."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.args.passes = getattr(self.args, "passes", 0) + 1
        factor = self.train_dataset.rng.uniform(0.5, 1.5) / self.args.passes
        return model(**inputs)["loss"] * factor / self.current_gradient_accumulation_steps


class Drawn(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(ITEMS)

    def __getitem__(self, index: int) -> Any:
        return ITEMS[index]


@every_method
def test_arguments_and_the_dataset(method: dict[str, Any], train: Any) -> None:
    runs = []
    for base, choice in ((transformers.Trainer, {"optim": "sgd", "stock": True}), (hf_sharpness.Trainer, method)):
        options = OPTIONS | choice | ({} if "stock" in choice else {"base_optim": "sgd"})
        runs.append(train(Net(), Drawn(), trainer_class=type("Own", (Counting, base), {}), **options))
    stock, ours = runs
    assert all(torch.equal(a, b) for a, b in zip(stock.weights, ours.weights, strict=True))
    assert stock.trainer.args.passes == ours.trainer.args.passes == 6


class Graph:
    """A batch of no known kind."""

    def __init__(self, items: list[dict[str, Tensor]], copies: int) -> None:
        self.nodes = torch.stack([item["x"] for item in items]).repeat(1, copies)
        self.labels, self.hops = torch.stack([item["labels"] for item in items]), 0


class OnGraphs:
    copies = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = lambda items: {"graph": Graph(items, self.copies)}

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        graph = inputs["graph"]
        graph.hops += 1
        graph.nodes.mul_(0.5).add_(1.0)
        output = model(x=graph.nodes[:, :6] / graph.hops, labels=graph.labels)
        loss = output["loss"] / self.current_gradient_accumulation_steps
        return (loss, output) if return_outputs else loss


class OnLargeGraphs(OnGraphs):
    copies = 1000


@every_method
@pytest.mark.parametrize("own", [OnGraphs, OnLargeGraphs])
def test_a_batch_object_that_a_pass_writes_to(own: type, method: dict[str, Any], train: Any) -> None:
    stock, ours = pair(own, method, train, remove_unused_columns=False)
    assert all(torch.equal(a, b) for a, b in zip(stock.weights, ours.weights, strict=True))
    assert max(map(abs, ours.series("sharpness"))) == 0
