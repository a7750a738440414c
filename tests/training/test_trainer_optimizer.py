"""Trainer: the optimizer is replaced, gradients come between micro-batches, weights outside the model are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification, collate, steps_of
from reference import BASES, SPECS, Spec, by_name, flat, reference_run
from torch import nn
from transformers import TrainerCallback

ITEMS = classification(64)
EXACT = {"rtol": 1e-10, "atol": 1e-11}
BASE = BASES[0]
four_methods = pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)


def arguments(spec: Spec, **others: Any) -> dict[str, Any]:
    return spec.arguments() | BASE.arguments() | {"max_grad_norm": 0.0, "num_train_epochs": 1} | others


class Replace(TrainerCallback):
    """Gives the trainer another optimizer at a moment of step 3."""

    def __init__(self, moment: str) -> None:
        self.trainer: Any = None
        setattr(self, moment, self.replace)

    def replace(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.trainer.optimizer = torch.optim.SGD(self.trainer.model.parameters(), lr=0.05, momentum=0.9)


class Known(Replace):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer = self.holder[0]


def trained(train: Any, spec: Spec, moment: str, **options: Any) -> Any:
    import hf_sharpness

    callback = Known(moment)
    callback.holder = []

    class Holding(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            callback.holder.append(self)

    return train(Net().double(), ITEMS, trainer_class=Holding, callbacks=[callback], **arguments(spec), **options)


@pytest.mark.parametrize("moment", ["on_step_begin", "on_step_end"])
@four_methods
def test_another_optimizer_is_stepped_with_from_then_on(spec: Spec, moment: str, train: Any) -> None:
    run = trained(train, spec, moment)
    steps = steps_of(ITEMS, 8)
    after = 3
    first = reference_run(Net().double(), steps[:after], spec.reference(), BASE.reference(), [BASE.lr] * after)
    model = Net().double()
    nn.utils.vector_to_parameters(first[-1].weights, model.parameters())
    momentum = BASES[1].reference(0.0)
    method = spec.reference()
    if spec.method == "xsam":  # alpha is that of the first step
        whole = spec.reference()
        reference_run(Net().double(), steps[:after], whole, BASE.reference(), [BASE.lr] * after)
        method = whole
    rest = reference_run(model, steps[after:], method, momentum, [0.05] * 5, epoch_starts=())
    torch.testing.assert_close(run.weights[-1], rest[-1].weights, **EXACT)


def test_replaced_between_backward_and_step_is_told(train: Any) -> None:
    """Only what a method adds after the step is lost by it."""
    decoupled, sam = by_name("wsam-decoupled", "sam")
    run = trained(train, decoupled, "on_pre_optimizer_step", catch=RuntimeError)
    assert "was replaced" in str(run.error)
    assert trained(train, sam, "on_pre_optimizer_step").error is None


class Between(TrainerCallback):
    """Changes gradients when a micro-batch that is not the step's last has ended."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def on_substep_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.kind == "adds":
            model(**collate(ITEMS[:8]))["loss"].backward()
        elif self.kind == "clips":
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        elif self.kind == "drops":
            model.last.weight.grad = None


@pytest.mark.parametrize("kind", ["adds", "clips", "drops"])
@four_methods
def test_a_gradient_that_comes_between_micro_batches_is_refused(spec: Spec, kind: str, train: Any) -> None:
    model = Net().double()
    options = arguments(spec, gradient_accumulation_steps=2)
    run = train(model, ITEMS, callbacks=[Between(kind)], catch=RuntimeError, **options)
    assert "between two micro-batches" in str(run.error)
    assert torch.equal(flat(run.model), flat(model))
    assert train(model, ITEMS, callbacks=[Between("nothing")], **options).error is None


@pytest.mark.parametrize("spec", [s for s in SPECS if s.name in ("sam", "wsam-coupled", "wsam-decoupled")], ids=str)
def test_in_scope_micro_batch_it_is_added(spec: Spec, train: Any) -> None:
    """Every micro-batch is a run of its own: a plain gradient beside them is a plain gradient."""
    runs = []
    for rho in (spec.settings["rho"], 0.0):
        settings = spec.settings | {"scope": "micro_batch", "rho": rho}
        options = arguments(Spec("", spec.method, settings), gradient_accumulation_steps=2, max_steps=1)
        runs.append([train(Net().double(), ITEMS, callbacks=[Between(k)], **options).weights[-1] for k in "ab"])
        runs[-1].append(train(Net().double(), ITEMS, callbacks=[Between("adds")], **options).weights[-1])
    (with_method, _, added), (stock, _, stock_added) = runs
    torch.testing.assert_close(added - with_method, stock_added - stock, **EXACT)


class Loss(nn.Module):
    """Has weights and a BatchNorm of its own, outside the model."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.norm, self.weight = nn.BatchNorm1d(3), nn.Parameter(torch.randn(3, 3))
        self.double()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.norm(logits) @ self.weight, labels)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("optim", ["sam", "wsam"])
def test_weights_and_batch_norm_of_a_loss_with_an_optimizer_of_its_own(
    optim: str, accumulation: int, train: Any, libraries: Any
) -> None:
    """At rho 0 both trainings are stock's, bit for bit."""
    hf_sharpness, transformers = libraries

    def run(stock: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss_of = Loss()
        own = torch.optim.SGD(loss_of.parameters(), lr=0.1)

        class WithLoss(transformers.Trainer if stock else hf_sharpness.Trainer):
            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                return loss_of(model(inputs["x"])["logits"], inputs["labels"])

        class Step(TrainerCallback):
            def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                own.step()
                own.zero_grad()

        options = {"max_grad_norm": 0.0, "learning_rate": 0.1, "gradient_accumulation_steps": accumulation}
        options["logging_strategy"] = "no"
        options |= {"optim": "sgd"} if stock else {"optim": optim, "base_optim": "sgd", "sam_rho": 0.0}
        result = train(Net().double(), ITEMS, stock=stock, trainer_class=WithLoss, callbacks=[Step()], **options)
        return result.weights[-1], loss_of.state_dict()

    (ours, our_loss), (stock, stock_loss) = run(False), run(True)
    torch.testing.assert_close(ours, stock, **EXACT)
    for name, value in stock_loss.items():
        torch.testing.assert_close(our_loss[name], value, **EXACT)


@pytest.mark.parametrize("optim", ["sgd", "sam", "wsam"])
def test_a_trainer_below_the_mixin_says_what_is_trained(optim: str, train: Any, libraries: Any) -> None:
    """As sentence-transformers', whose losses have weights; transformers' own method is static, this one is not."""
    hf_sharpness, transformers = libraries

    class Below(transformers.Trainer):
        loss_of: Loss | None = None

        def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> Any:
            made, options = super().get_optimizer_cls_and_kwargs(args, model)
            self.loss_of = Loss()
            return made, {**options, "optimizer_dict": [{"params": [*self.model.parameters(), self.loss_of.weight]}]}

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return self.loss_of(model(inputs["x"])["logits"], inputs["labels"])  # type: ignore[misc]

    def run(kind: type, **chosen: Any) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"max_grad_norm": 0.0, "learning_rate": 0.1, "max_steps": 3, "logging_strategy": "no"}
        result = train(Net().double(), ITEMS, trainer_class=kind, **options, **chosen)
        return result.weights[-1], result.trainer.loss_of.weight.detach()

    class Mixed(hf_sharpness.SharpnessTrainerMixin, Below):
        pass

    stock = run(Below, optim="sgd", stock=True)
    sharp = {"base_optim": "sgd", "sam_rho": 0.0} if optim != "sgd" else {}
    ours = run(Mixed, optim=optim, **sharp)
    assert not torch.equal(stock[1], Loss().weight)
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)


def test_which_base_optimizer_a_class_would_make(libraries: Any, tmp_path: Any) -> None:
    hf_sharpness, _ = libraries
    arguments = hf_sharpness.TrainingArguments(str(tmp_path), optim="sam", base_optim="sgd", use_cpu=True)
    for kind in (hf_sharpness.Trainer, hf_sharpness.Seq2SeqTrainer):
        assert kind.get_optimizer_cls_and_kwargs(arguments)[0] is torch.optim.SGD
    assert arguments.optim == "sam"
