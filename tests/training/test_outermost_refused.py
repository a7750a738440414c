"""What is refused in an outermost training_step: optimizers that step, batches that are gone; and what is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from models import Net
from outermost import ITEMS, OPTIONS, SAM, Ours, every_method
from own_steps import backward

import hf_sharpness


class Manual:
    """Steps the Trainer's optimizer itself."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, *args, **kwargs)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


class Swallowing:
    """Skips a batch whatever happens in it."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().training_step(*args, **kwargs)
        except Exception:
            return torch.tensor(0.0)


@every_method
@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Manual, "Manual.training_step"),
        (type("Hidden", (Swallowing, Manual), {}), "Swallowing.training_step"),
    ],
)
def test_a_step_in_which_an_optimizer_steps(case: type, name: str, method: Any, train: Any) -> None:
    own = type("Own", (case, Ours), {})
    run = train(Net().double(), ITEMS, trainer_class=own, catch=ValueError, **OPTIONS, **method)
    assert name in str(run.error)
    assert "optimizer" in str(run.error)
    assert not run.weights
    assert torch.equal(run.model.first.weight, Net().double().first.weight)
    stock_options = {k: v for k, v in OPTIONS.items() if k != "base_optim"}
    train(Net().double(), ITEMS, trainer_class=own, optim="sgd", **stock_options)


@every_method
def test_an_optimizer_made_in_the_step_may_step(method: Any, train: Any) -> None:
    """An attack on the inputs."""

    class Attacking(Ours):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            shift = torch.zeros_like(inputs["x"], requires_grad=True)
            attack = torch.optim.SGD([shift], lr=0.1)
            for _ in range(2):
                shift.grad = torch.ones_like(shift)
                attack.step()
            return super().compute_loss(model, inputs | {"x": inputs["x"] + shift.detach()}, *args, **kwargs)

    class Shifted(Ours):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs | {"x": inputs["x"] - 0.2}, *args, **kwargs)

    run, alike = (train(Net().double(), ITEMS, trainer_class=c, **OPTIONS, **method) for c in (Attacking, Shifted))
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(alike.weights), rtol=1e-9, atol=1e-9)


class Copy:
    """A copy of the model that an optimizer of its own moves, as adversarial weight perturbation has it."""

    def __init__(self, model: Any) -> None:
        self.net = copy.deepcopy(model)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)

    def shift(self, inputs: Any) -> float:
        self.optimizer.zero_grad()
        self.net(**inputs)["loss"].backward()
        self.optimizer.step()
        return float(self.net.first.weight.norm())


@every_method
def test_an_optimizer_of_an_object_may_step(method: Any, train: Any) -> None:
    """At rho 0 the steps are stock ones, and the copy has moved once for each."""
    ours, stock = [], []
    for record, options in ((ours, OPTIONS | method | {"sam_rho": 0.0}), (stock, {"optim": "sgd"})):

        class Adversary(Ours):
            copy: Any = None

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if self.copy is None:
                    self.copy = Copy(model)
                factor = self.copy.shift(inputs)
                return super().compute_loss(model, inputs | {"x": inputs["x"] * factor}, *args, **kwargs)

        common = {k: v for k, v in OPTIONS.items() if k != "base_optim"}
        run = train(Net().double(), ITEMS, trainer_class=Adversary, **(common | options))
        record += [*run.weights, *(p.detach() for p in run.trainer.copy.net.parameters())]
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


class Writer(Net):
    def generate(self, x: torch.Tensor) -> torch.Tensor:
        return x


@every_method
def test_generating_in_a_whole_step(method: Any, train: Any) -> None:
    """Refused before the first optimizer step, by the name of the class; around one inner call it is done once."""

    class Online:
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs = {"x": model.generate(inputs["x"]), "labels": inputs["labels"]}
            return backward(self, model, inputs)

    class Once:
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs["x"] = model.generate(inputs["x"])
            return super().training_step(model, inputs, *args, **kwargs)

    own = type("Own", (Online, Ours), {})
    run = train(Writer().double(), ITEMS, trainer_class=own, catch=ValueError, **OPTIONS, **method)
    assert "Online.training_step generates" in str(run.error)
    assert not run.weights
    assert "generate" not in vars(run.model)
    run = train(Writer().double(), ITEMS, trainer_class=type("Own", (Once, Ours), {}), **OPTIONS, **method)
    plain = train(Net().double(), ITEMS, **OPTIONS, **method)
    assert torch.equal(run.weights[-1], plain.weights[-1])


def test_a_batch_that_can_be_read_once(train: Any) -> None:
    class Own(Ours):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return backward(self, model, {"x": torch.stack(list(inputs["rows"])), "labels": inputs["labels"]})

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            samples, number = super().get_batch_samples(*args, **kwargs)
            return [{"rows": iter(s["x"]), "labels": s["labels"]} for s in samples], number

    run = train(Net().double(), ITEMS, trainer_class=Own, catch=ValueError, **OPTIONS, **SAM)
    assert "list or a tensor" in str(run.error)
    assert not run.weights


def test_the_mixin_after_a_trainer_is_refused() -> None:
    with pytest.raises(TypeError, match="Name the mixin first: class Mine"):
        type("Mine", (transformers.Trainer, hf_sharpness.SharpnessTrainerMixin), {})
    sub = type("Sub", (transformers.Trainer,), {})
    with pytest.raises(TypeError, match="Name the mixin first"):
        type("Mine", (sub, hf_sharpness.SharpnessTrainerMixin), {})
    type("Fine", (hf_sharpness.SharpnessTrainerMixin, sub), {})
    type("Fine", (sub, hf_sharpness.Trainer), {})
    type("Fine", (hf_sharpness.Trainer, hf_sharpness.SharpnessTrainerMixin), {})


@every_method
def test_generating_in_the_loss(method: Any, train: Any) -> None:
    class Online:
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs | {"x": model.generate(inputs["x"])}, *args, **kwargs)

    own = type("Own", (Online, Ours), {})
    run = train(Writer().double(), ITEMS, trainer_class=own, catch=ValueError, **OPTIONS, **method)
    assert "loss (compute_loss, or the model's forward) generates text" in str(run.error)
    assert not run.weights
    assert "generate" not in vars(run.model)
