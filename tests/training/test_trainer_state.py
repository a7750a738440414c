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


def _logits_loss(outputs: Any, labels: Tensor, factor: Any) -> Tensor:
    return F.cross_entropy(outputs["logits"], labels) * factor / 2  # two micro-batches a step


def in_a_closure() -> Any:
    calls = 0

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        nonlocal calls
        calls += 1
        return _logits_loss(outputs, labels, 1 / calls)

    return loss, lambda: calls


def in_an_attribute() -> Any:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        loss.calls = getattr(loss, "calls", 0) + 1  # type: ignore[attr-defined]
        return _logits_loss(outputs, labels, 1 / loss.calls)  # type: ignore[attr-defined]

    return loss, lambda: loss.calls  # type: ignore[attr-defined]


def in_a_default() -> Any:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None, seen: list[int] = [0]) -> Tensor:  # noqa: B006
        seen[0] += 1
        return _logits_loss(outputs, labels, 1 / seen[0])

    loss.__defaults__[1][0] = 0  # type: ignore[index]
    return loss, lambda: loss.__defaults__[1][0]  # type: ignore[index]


def in_a_generator() -> Any:
    rng = np.random.default_rng(0)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return _logits_loss(outputs, labels, rng.uniform(0.5, 1.5))

    return loss, lambda: rng.uniform()


def in_a_class() -> Any:
    """As gradient reversal is often written: its strength grows in the function's class."""

    class Reversed(torch.autograd.Function):
        strength = 0.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.strength = Reversed.strength = Reversed.strength + 0.1
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return -ctx.strength * gradients[0]

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return _logits_loss({"logits": Reversed.apply(outputs["logits"])}, labels, 1.0)

    return loss, lambda: Reversed.strength


def in_a_module() -> Any:
    module = Loss()
    return lambda outputs, labels, num_items_in_batch=None: module(outputs["logits"], labels), module.state


@every_method
@pytest.mark.parametrize(
    "where", [in_a_closure, in_an_attribute, in_a_default, in_a_generator, in_a_class, in_a_module]
)
def test_a_loss_function_handed_to_the_librarys_own_trainer(where: Any, method: dict[str, Any], tmp_path: Any) -> None:
    """No class of the user's is there to look into: what the loss function refers to is found all the same."""
    runs = []
    for library, choice in ((transformers, {"optim": "sgd"}), (hf_sharpness, {"base_optim": "sgd", **method})):
        loss, left = where()
        arguments = library.TrainingArguments(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            logging_steps=1,
            disable_tqdm=True,
            **choice,
            **OPTIONS,
        )
        model = Net()
        trainer = library.Trainer(model=model, args=arguments, train_dataset=ITEMS, compute_loss_func=loss)
        trainer.train()
        runs.append(([p.detach() for p in model.parameters()], left(), trainer.state.log_history))
    (stock, expected, _), (ours, found, logs) = runs
    assert all(torch.equal(a, b) for a, b in zip(stock, ours, strict=True))
    assert same(expected, found)
    assert max(abs(log["sharpness"]) for log in logs if "sharpness" in log) == 0


class Counting:
    """Counts in its arguments, and draws from its dataset."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.args.passes = getattr(self.args, "passes", 0) + 1
        factor = self.train_dataset.rng.uniform(0.5, 1.5) / self.args.passes
        return model(**inputs)["loss"] * factor / self.current_gradient_accumulation_steps


class Drawn:
    """A list of items as far as the Trainer can see, and of no class of torch's."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(ITEMS)

    def __getitem__(self, index: int) -> Any:
        return ITEMS[index]


class TorchDrawn(Drawn, torch.utils.data.Dataset):
    pass


@pytest.mark.parametrize("kind", [Drawn, TorchDrawn])
@every_method
def test_arguments_and_the_dataset(method: dict[str, Any], kind: Any, train: Any) -> None:
    runs = []
    for base, choice in ((transformers.Trainer, {"optim": "sgd", "stock": True}), (hf_sharpness.Trainer, method)):
        options = OPTIONS | choice | ({} if "stock" in choice else {"base_optim": "sgd"})
        runs.append(train(Net(), kind(), trainer_class=type("Own", (Counting, base), {}), **options))
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
