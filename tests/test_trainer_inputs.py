"""What a subclass does to its inputs, or counts to compute its loss by, is done once: replays find the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import Net, classification
from torch import nn

import hf_sharpness

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


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())))
@pytest.mark.parametrize("layout", [0, 1], ids=["above", "below"])
@pytest.mark.parametrize("own", [Noisy, Annealed, Counting])
def test_rho_0_is_stock(own: type, layout: int, method: dict[str, Any], train: Any) -> None:
    """Inputs, random numbers drawn after them (dropout) and counts are those of the first pass, bit for bit."""
    model = Net(middle=lambda: nn.Dropout(0.3))
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
