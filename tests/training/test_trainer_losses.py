"""A user's own loss, training_step or optimizer in the Trainer, against the float64 references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from models import Net, classification, steps_of
from reference import BASES, Spec, by_name, linear_schedule, reference_run
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_updates import EXACT, SCHEDULE, assert_same, every_method, reference

import hf_sharpness


def smoothed(model: nn.Module, micro_batches: Any) -> list[Tensor]:
    losses = [F.cross_entropy(model(b["x"])["logits"], b["labels"], label_smoothing=0.2) for b in micro_batches]
    return [loss / len(micro_batches) for loss in losses]


def square_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A user's loss, a mean over the items of the effective batch."""
    return (outputs["logits"] - labels[:, None]).pow(2).sum() / num_items_in_batch


def squares(model: nn.Module, micro_batches: Any) -> list[Tensor]:
    items = sum(len(batch["labels"]) for batch in micro_batches)
    return [square_loss(model(b["x"]), b["labels"], items) for b in micro_batches]


LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable]] = {
    "label_smoothing": ({"label_smoothing_factor": 0.2}, {}, smoothed),
    "compute_loss_func": ({}, {"trainer_options": {"compute_loss_func": square_loss}}, squares),
}


@pytest.mark.parametrize(("arguments", "options", "losses"), LOSSES.values(), ids=LOSSES)
@every_method
def test_losses_made_by_the_trainer(spec: Spec, arguments: Any, options: Any, losses: Callable, train: Any) -> None:
    base, model, items = BASES[2], Net().double(), classification(56)
    model.config = None  # where the Trainer looks before it smooths labels
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE | arguments,
        **options,
        max_grad_norm=0.5,
        num_train_epochs=3,
        gradient_accumulation_steps=3,
    )
    steps = steps_of(items, 8, accumulation=3, epochs=3)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if arguments else EXACT  # label smoothing sums in float32
    assert_same(run.weights, reference(model, steps, spec, base, epoch=3, losses=losses), **tolerance)


@every_method
def test_a_loss_in_a_tuple(spec: Spec, train: Any) -> None:
    base, items = BASES[1], classification(32)
    runs = [
        train(Net(output=output).double(), items, **spec.arguments() | base.arguments(), num_train_epochs=2)
        for output in ("dict", "tuple")
    ]
    assert torch.equal(*(run.weights[-1] for run in runs))


@every_method
def test_a_training_step_of_the_users(spec: Spec, train: Any) -> None:
    """A Trainer subclass below the mixin keeps its say in every pass: here a compute_loss of its own."""
    import transformers

    from hf_sharpness import SharpnessTrainerMixin

    class Doubled(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    class Mixed(SharpnessTrainerMixin, Doubled):
        pass

    def doubled(model: nn.Module, micro_batches: Any) -> list[Tensor]:
        return [2 * model(**batch)["loss"] / len(micro_batches) for batch in micro_batches]

    base, model, items = BASES[1], Net().double(), classification(64)
    run = train(
        model,
        items,
        trainer_class=Mixed,
        **spec.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=3,
        gradient_accumulation_steps=2,
    )
    steps = steps_of(items, 8, accumulation=2, epochs=3)
    assert_same(run.weights, reference(model, steps, spec, base, epoch=4, losses=doubled))


@every_method
def test_a_training_step_that_consumes_its_inputs(spec: Spec, train: Any) -> None:
    """Every pass gets the whole micro-batch, also where the user's code takes things out of it."""
    import transformers

    from hf_sharpness import SharpnessTrainerMixin

    class Popping(transformers.Trainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            assert inputs.pop("note").shape == inputs["labels"].shape
            return super().training_step(model, inputs, *args, **kwargs)

    class Mixed(SharpnessTrainerMixin, Popping):
        pass

    base, model, items = BASES[1], Net().double(), classification(64)
    noted = [item | {"note": torch.tensor(0)} for item in items]
    arguments = spec.arguments() | base.arguments() | SCHEDULE
    run = train(
        model,
        noted,
        trainer_class=Mixed,
        **arguments,
        max_grad_norm=0.5,
        num_train_epochs=2,
        remove_unused_columns=False,
    )
    assert_same(run.weights, reference(model, steps_of(items, 8, epochs=2), spec, base, epoch=8))


@pytest.mark.parametrize("spec", by_name("asam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_an_optimizer_of_the_users(spec: Spec, train: Any) -> None:
    """Groups with learning rates and weight decays of their own, from an overridden create_optimizer."""
    import hf_sharpness

    base, model, items = BASES[1], Net().double(), classification(64)
    sizes = [parameter.numel() for parameter in model.parameters()]
    lrs, decays = [torch.tensor(v, dtype=torch.float64) for v in ((0.1, 0.02, 0.05, 0.2), (0.0, 0.1, 0.05, 0.0))]

    class Grouped(hf_sharpness.Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            groups = [
                {"params": [p], "lr": lr, "weight_decay": wd}
                for p, lr, wd in zip(self.model.parameters(), lrs.tolist(), decays.tolist(), strict=True)
            ]
            self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=base.momentum)
            return self.optimizer

    run = train(
        model,
        items,
        trainer_class=Grouped,
        **spec.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=3,
    )
    per_element = [v.repeat_interleave(torch.tensor(sizes)) for v in (lrs, decays)]
    records = reference_run(
        model,
        steps_of(items, 8, epochs=3),
        spec.reference(),
        base.reference(per_element[1]),
        linear_schedule(per_element[0], 3, 24),
        max_norm=0.5,
        epoch_starts=(0, 8, 16),
    )
    assert_same(run.weights, records)


class Salient:
    """Notes how strongly the loss depends on its inputs."""

    seen: tuple[float, ...] = ()

    def training_step(self, model: Any, inputs: Any, *args: Any) -> Any:
        inputs["x"].requires_grad_(True)
        loss = super().training_step(model, inputs, *args)  # type: ignore[misc]
        self.seen += (float(inputs["x"].grad.norm()),)
        return loss


@pytest.mark.parametrize("kind", [(hf_sharpness.Trainer,), (hf_sharpness.SharpnessTrainerMixin, transformers.Trainer)])
@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
def test_gradients_of_inputs_are_those_of_one_pass(kind: tuple[type, ...], optim: str, train: Any) -> None:
    seen = []
    stock: dict[str, Any] = {"optim": "sgd", "stock": True}
    ours: dict[str, Any] = {"optim": optim, "base_optim": "sgd", "sam_rho": 0.0}
    for bases, arguments in (((transformers.Trainer,), stock), (kind, ours)):
        own = type("Own", (*bases[:-1], type("Below", (Salient, bases[-1]), {})), {})
        options = {"learning_rate": 0.1, "max_steps": 3, "max_grad_norm": 0.0}
        run = train(Net(), classification(24, torch.float32), trainer_class=own, **arguments, **options)
        seen.append(run.trainer.seen)
    assert len(seen[0]) == 3
    assert seen[1] == pytest.approx(seen[0], rel=1e-6)
