"""What a subclass does to its inputs, or counts to compute its loss by, is done once: replays find the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import transformers
from models import Net, classification
from torch import nn
from transformers import BatchEncoding

import hf_sharpness
from hf_sharpness.training.replay import copied

ITEMS = classification(64, torch.float32)
OPTIONS = {"max_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.1, "max_grad_norm": 0.0}
STOCK = {"optim": "sgd", "stock": True}
METHODS = [
    {"optim": "sam", "sam_rho": 0.0},
    {"optim": "sam", "sam_rho": 0.0, "sam_steps": 3},
    {"optim": "sam", "sam_rho": 0.0, "sam_scope": "micro_batch"},
    {"optim": "wsam", "sam_rho": 0.0, "wsam_mode": "coupled"},
]


def layouts(first: type) -> list[type]:
    """The class above the mixin and below it."""
    return [
        type("Above", (first, hf_sharpness.Trainer), {}),
        type("Below", (hf_sharpness.SharpnessTrainerMixin, type("Own", (first, transformers.Trainer), {})), {}),
    ]


class Noisy:
    """Draws noise for its inputs, and takes the labels out of what it has prepared."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights: tuple[torch.Tensor, ...] = ()

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        self.weights += (next(self.model.parameters()).detach().clone(),)
        inputs["x"] = inputs["x"] + torch.randn_like(inputs["x"])
        return inputs

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        loss = nn.functional.cross_entropy(model(**inputs)["logits"], labels)
        return loss / self.current_gradient_accumulation_steps if kwargs.get("num_items_in_batch") else loss


class Annealed:
    """A loss whose weight is counted by itself."""

    seen = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.seen += 1
        return loss * self.seen


class Counting(Noisy, Annealed):
    """Prepares by a count of its own, which its loss looks at."""

    prepared = 0

    def _prepare_inputs(self, inputs: Any) -> Any:
        self.prepared += 1
        return super()._prepare_inputs(inputs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * (1.0 + self.prepared)


class InPlace:
    """Mixes each batch with its reverse, in the tensors it is given."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs["x"].mul_(0.7).add_(inputs["x"].flip(0), alpha=0.3)
        return super().compute_loss(model, inputs, *args, **kwargs)


class OutOfPlace:
    """The same in new tensors."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        x = inputs["x"] * 0.7
        return super().compute_loss(model, inputs | {"x": x.add(x.flip(0), alpha=0.3)}, *args, **kwargs)


class Prepared:
    """Its inputs are prepared by a method of its own, which does nothing more."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(inputs)


class PreparedInPlace(InPlace, Prepared):
    pass


class Rows(nn.Module):
    """A network that is given its batch in pieces, read one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(middle=lambda: nn.Dropout(0.3))

    def forward(self, pieces: Any, labels: torch.Tensor, x: None = None) -> dict[str, torch.Tensor]:
        return self.net(torch.cat(list(pieces)), labels)


class OneByOne:
    """Prepares an iterator, noise included."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        x = inputs.pop("x")
        return inputs | {"pieces": iter((x + torch.randn_like(x)).split(2))}


class Prompted:
    """Prepares with a trainable weight."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        weight = self.model.first.weight
        inputs["x"].add_(1.0)
        return inputs | {"x": inputs["x"] + torch.tanh(inputs["x"] @ weight.t()) @ weight}


class PromptedInLoss:
    """The same in compute_loss."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        weight, x = self.model.first.weight, inputs["x"] + 1.0
        prompted = inputs | {"x": x + torch.tanh(x @ weight.t()) @ weight}
        return super().compute_loss(model, prompted, *args, **kwargs)


@pytest.mark.usually("-3$|micro")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())))
@pytest.mark.parametrize("layout", [0, 1], ids=["above", "below"])
@pytest.mark.parametrize("own", [Noisy, Annealed, Counting, InPlace, PreparedInPlace, OneByOne, Prompted])
def test_rho_0_is_stock(own: type, layout: int, method: dict[str, Any], train: Any) -> None:
    """Inputs, random numbers drawn after them (dropout) and counts are those of the first pass, bit for bit."""
    model = Rows() if own is OneByOne else Net(middle=lambda: nn.Dropout(0.3))
    stock = train(model, ITEMS, trainer_class=type("Stock", (own, transformers.Trainer), {}), **STOCK, **OPTIONS)
    trainer_class = layouts(own)[layout]
    ours = train(model, ITEMS, trainer_class=trainer_class, **method, base_optim="sgd", **OPTIONS)
    assert not torch.equal(stock.weights[0], stock.weights[2])
    for mine, theirs in zip(ours.weights, stock.weights, strict=True):
        if method["optim"] == "sam":
            assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, theirs)
    assert ours.series("loss") == pytest.approx(stock.series("loss"), rel=1e-6)
    for name in ("seen", "prepared"):
        assert getattr(ours.trainer, name, 0) == getattr(stock.trainer, name, 0)
    assert "_prepare_inputs" not in vars(ours.trainer)


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
@pytest.mark.parametrize("layout", [0, 1], ids=["above", "below"])
def test_inputs_are_prepared_once_by_clean_weights(layout: int, optim: str, train: Any) -> None:
    run = train(Net(), ITEMS, trainer_class=layouts(Noisy)[layout], optim=optim, sam_rho=0.5, **OPTIONS)
    seen = run.trainer.weights
    assert len(seen) == 6
    first = next(run.model.parameters()).numel()
    at_step = [run.weights[step][:first].view_as(seen[0]) for step in range(2)]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], at_step[0])
    assert torch.equal(seen[3], at_step[0])
    assert torch.equal(seen[4], at_step[1])


def test_a_method_on_the_instance_is_put_back(train: Any) -> None:
    calls = []

    class Own(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stock = self._prepare_inputs
            self._prepare_inputs = self.mine = lambda inputs: calls.append(1) or stock(inputs)

    run = train(Net(), ITEMS, trainer_class=Own, optim="sam", **OPTIONS)
    assert len(calls) == 6
    assert vars(run.trainer)["_prepare_inputs"] is run.trainer.mine


def test_inputs_that_cannot_be_prepared(train: Any) -> None:
    class Own(hf_sharpness.Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            raise KeyError("mine")

    run = train(Net(), ITEMS, trainer_class=Own, optim="sam", catch=KeyError, **OPTIONS)
    assert run.error is not None
    assert "_prepare_inputs" not in vars(run.trainer)


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
@pytest.mark.parametrize("layout", [0, 1], ids=["above", "below"])
@pytest.mark.parametrize(
    ("own", "alike"), [(InPlace, OutOfPlace), (PreparedInPlace, OutOfPlace), (Prompted, PromptedInLoss)]
)
def test_every_pass_sees_the_inputs_as_they_were(own: type, alike: type, layout: int, optim: str, train: Any) -> None:
    """Whatever a pass has done to them; and what was prepared with weights follows them."""
    runs = [
        train(Net(), ITEMS, trainer_class=layouts(kind)[layout], optim=optim, sam_rho=0.5, **OPTIONS)
        for kind in (own, alike)
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].weights, runs[1].weights, strict=True))
    assert runs[0].series("perturbed_loss") == runs[1].series("perturbed_loss")


def test_prepared_for_stock_methods_is_not_copied(train: Any) -> None:
    seen = []

    class Own(hf_sharpness.Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            seen.append(super()._prepare_inputs(inputs))
            return seen[-1]

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            assert inputs is seen[-1]
            return super().compute_loss(model, inputs, *args, **kwargs)

    train(Net(), ITEMS, trainer_class=Own, optim="wsam", wsam_gamma=0.0, **OPTIONS)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("once", "said"), [("iterator", "list_iterator"), ("graph", "autograd")])
def test_batches_that_cannot_be_gone_through_again(once: str, said: str, prepared: bool, train: Any) -> None:
    outside = torch.ones(2, 1, requires_grad=True)

    class Own(*((Prepared,) if prepared else ()), hf_sharpness.Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs["nested"] = [iter([1]) if once == "iterator" else outside.exp()]
            return super().training_step(model, inputs, *args, **kwargs)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs.pop("nested")
            return super().compute_loss(model, inputs, *args, **kwargs)

    run = train(Net(), ITEMS, trainer_class=Own, optim="sam", sam_rho=0.5, catch=ValueError, **OPTIONS)
    assert said in str(run.error)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), Net().parameters(), strict=True))


def test_an_iterator_that_was_read_while_preparing(train: Any) -> None:
    class Own(hf_sharpness.Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().training_step(model, inputs | {"rows": iter(inputs["x"])}, *args, **kwargs)

        def _prepare_inputs(self, inputs: Any) -> Any:
            return super()._prepare_inputs(inputs | {"x": torch.stack(list(inputs.pop("rows")))})

    ours = train(Net(), ITEMS, trainer_class=Own, optim="sam", sam_rho=0.5, **OPTIONS)
    alike = train(Net(), ITEMS, optim="sam", sam_rho=0.5, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, alike.weights, strict=True))


class Pair(NamedTuple):
    first: Any
    second: Any


def test_copies_of_inputs() -> None:
    tensor, leaf, other = torch.ones(2), torch.ones(2, requires_grad=True), object()
    inputs = BatchEncoding({"a": tensor, "b": [Pair(tensor, leaf), (other,)]})
    copy = copied(inputs)
    assert type(copy) is BatchEncoding
    assert copy is not inputs
    copy["a"].add_(1)
    assert copy["a"].tolist() == [2, 2]
    assert tensor.tolist() == [1, 1]
    pair, (same,) = copy["b"]
    assert type(pair) is Pair
    assert pair.first is copy["a"]
    assert pair.second is leaf
    assert same is other
    assert copied([tensor], torch.device("meta"))[0] is tensor
    assert copied([tensor], torch.device("cpu"))[0] is not tensor
