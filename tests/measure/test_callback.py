"""The callback: what it logs is right, and the training goes on bit for bit as without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import Net, TinyLM, classification, collate, sentences
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hf_sharpness import MeasureSharpness

ITEMS = classification(24)


def measuring(base: type, settings: dict[str, Any] | None) -> type:
    """The Trainer class, with the callback where there are settings."""

    class Measured(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if settings is not None:
                self.add_callback(MeasureSharpness(self, **settings))

    return Measured


def noisy() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3))


EVERYTHING = {"adaptive_rho": (0.5,), "worst_rho": (0.1,), "worst_steps": 2, "examples": 10}
TRAININGS: dict[str, dict[str, Any]] = {
    "adamw": {"stock": True, "optim": "adamw_torch", "learning_rate": 0.01},
    "sgd": {"stock": True, "optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.1},
    "sam": {"optim": "sam", "learning_rate": 0.01},
    "wsam": {"optim": "wsam", "wsam_mode": "decoupled", "learning_rate": 0.01},
    "xsam": {"optim": "xsam", "learning_rate": 0.01, "xsam_refresh": "2"},
}


@pytest.mark.parametrize(("name", "every"), [*((name, 1) for name in TRAININGS), ("adamw", "epoch"), ("sam", "epoch")])
def test_the_training_is_bit_for_bit_the_same(train: Callable, libraries: Any, name: str, every: Any) -> None:
    hf_sharpness, transformers = libraries
    stock = TRAININGS[name].get("stock", False)
    base = (transformers if stock else hf_sharpness).Trainer
    runs = []
    for settings in (None, {"every": every, **EVERYTHING}):
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        run = train(
            Net(noisy).double(),
            ITEMS,
            trainer_class=measuring(base, settings),
            arguments_class=transformers.TrainingArguments if stock else None,
            trainer_options={"eval_dataset": classification(9, seed=3)},
            shuffle=True,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            lr_scheduler_type="linear",
            logging_steps=2,
            eval_strategy="epoch",
            **{key: value for key, value in TRAININGS[name].items() if key != "stock"},
        )
        history = [
            {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
            for entry in run.trainer.state.log_history
        ]
        rest = [entry for entry in history if not any(key.startswith("measure_") for key in entry)]
        random_numbers = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        optimizer = run.trainer.optimizer.state_dict()["state"]
        runs.append((run, rest, random_numbers, optimizer))
    (plain, history, numbers, optimizer), (other, others_history, others_numbers, others_optimizer) = runs
    assert len(plain.weights) == len(other.weights) == 6
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, other.weights, strict=True))
    assert history == others_history
    assert torch.equal(numbers[0], others_numbers[0])
    assert numbers[1:] == others_numbers[1:]
    assert all(torch.equal(a, b) for a, b in zip(plain.model.buffers(), other.model.buffers(), strict=True))
    for entries, others in zip(optimizer.values(), others_optimizer.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(entries[k]), torch.as_tensor(others[k])) for k in entries)
    measured = [e for e in other.trainer.state.log_history if "measure_loss" in e]
    assert [entry["step"] for entry in measured] == ([1, 2, 3, 4, 5, 6] if every == 1 else [3, 6])
    wanted = "loss error gradient_norm sharpness_rho_0.05 adaptive_sharpness_rho_0.5 worst_sharpness_rho_0.1 gap_loss"
    assert all(f"measure_{name}" in entry for entry in measured for name in [*wanted.split(), "gap_error"])


def test_the_numbers_are_those_of_the_formulas(train: Callable, libraries: Any) -> None:
    """In float64 against plain torch, at the weights after each step, the AdamW update against a step by hand."""
    transformers = libraries[1]
    evaluation = classification(9, seed=3)
    run = train(
        Net(lambda: nn.Dropout(0.5)).double(),
        ITEMS,
        trainer_class=measuring(transformers.Trainer, {"every": 1, "examples": 100, "batch_size": 5}),
        arguments_class=transformers.TrainingArguments,
        trainer_options={"eval_dataset": evaluation},
        max_steps=4,
        learning_rate=0.01,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
    model = Net().double().eval()
    x, labels = (torch.stack([item[key] for item in ITEMS]) for key in ("x", "labels"))

    def loss_at(weights: torch.Tensor, items: Any = None) -> torch.Tensor:
        vector_to_parameters(weights, model.parameters())
        batch = {"x": x, "labels": labels} if items is None else collate(items)
        return model(**batch)["loss"]

    for step, weights in enumerate(run.weights):
        entry = run.trainer.state.log_history[2 * step]
        loss = loss_at(weights)
        g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        assert entry["measure_loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert entry["measure_gradient_norm"] == pytest.approx(g.norm().item(), rel=1e-10)
        assert entry["measure_error"] == (model(x)["logits"].argmax(-1) != labels).double().mean().item()
        perturbed = loss_at(weights + 0.05 * g / g.norm()).item()
        assert entry["measure_sharpness_rho_0.05"] == pytest.approx(perturbed - loss.item(), rel=1e-8)
        assert entry["measure_gap_loss"] == pytest.approx(loss_at(weights, evaluation).item() - loss.item(), abs=1e-12)
        # eta_c: the loss along the update is what it is at the weights, and lower on the way there.
        eta = entry["measure_critical_learning_rate"]
        assert entry["measure_critical_sharpness"] == pytest.approx(2 / eta)
    # The update at the last step, from the optimizer's own moments.
    vector_to_parameters(run.weights[-1], model.parameters())
    state = run.trainer.optimizer.state
    m, v = (parameters_to_vector([state[p][k] for p in run.model.parameters()]) for k in ("exp_avg", "exp_avg_sq"))
    steps = len(run.weights) + 1
    m, v = (0.9 * m + 0.1 * g) / (1 - 0.9**steps), (0.999 * v + 0.001 * g**2) / (1 - 0.999**steps)
    update = m / (v.sqrt() + 1e-8)
    at = loss_at(run.weights[-1] - eta * update).item()
    assert abs(at - loss.item()) <= 0.02 * eta * float(update @ g)
    assert loss_at(run.weights[-1] - 0.5 * eta * update).item() < loss.item()
    assert loss_at(run.weights[-1] - 1.05 * eta * update).item() > loss.item()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_under_autocast_it_computes_in_float32(train: Callable, libraries: Any, precision: str) -> None:
    transformers = libraries[1]
    items = classification(24, torch.float32)
    run = train(
        Net(),
        items,
        trainer_class=measuring(transformers.Trainer, {"every": 1, "examples": 100}),
        arguments_class=transformers.TrainingArguments,
        max_steps=1,
        bf16=precision == "bf16",
    )
    model = Net()
    vector_to_parameters(run.weights[0].float(), model.parameters())
    found = run.trainer.state.log_history[0]["measure_loss"]
    assert found == pytest.approx(model(**collate(items))["loss"].item(), rel=1e-6)


def smoothed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels, label_smoothing=0.3)


def test_the_trainers_own_loss_is_measured(train: Callable, libraries: Any) -> None:
    transformers = libraries[1]
    run = train(
        Net().double(),
        ITEMS,
        trainer_class=measuring(transformers.Trainer, {"every": 1, "examples": 100}),
        arguments_class=transformers.TrainingArguments,
        max_steps=1,
        trainer_options={"compute_loss_func": smoothed},
    )
    with torch.no_grad():
        logits = run.model(torch.stack([item["x"] for item in ITEMS]))["logits"]
    expected = F.cross_entropy(logits, torch.stack([item["labels"] for item in ITEMS]), label_smoothing=0.3)
    assert run.trainer.state.log_history[0]["measure_loss"] == pytest.approx(expected.item(), rel=1e-10)


def test_a_language_model_is_measured(train: Callable, libraries: Any) -> None:
    run = train(
        TinyLM().double(),
        sentences(16),
        trainer_class=measuring(libraries[0].Trainer, {"every": 1}),
        optim="sam",
        max_steps=2,
    )
    entry = run.trainer.state.log_history[0]
    assert entry["measure_sharpness_rho_0.05"] > 0
    assert "measure_error" not in entry


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "every=0"),
        ({"every": "step"}, "every='step'"),
        ({"examples": 0}, "examples=0"),
        ({"rho": (0.0,)}, "rho="),
        ({"rho": 0.1}, "rho=0.1"),
        ({"worst_steps": -1}, "worst_steps=-1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="is not valid") as caught:
        MeasureSharpness(None, **settings)
    assert words in str(caught.value)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(ITEMS)


@pytest.mark.parametrize(
    ("model", "items", "words"),
    [
        (Net().bfloat16(), classification(8, torch.bfloat16), "stored in torch.bfloat16"),
        (Net().double(), Stream(), "dataset="),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    train: Callable, libraries: Any, model: Any, items: Any, words: str
) -> None:
    transformers = libraries[1]
    run = train(
        model,
        items,
        trainer_class=measuring(transformers.Trainer, {"every": 1}),
        arguments_class=transformers.TrainingArguments,
        max_steps=1,
        catch=ValueError,
    )
    assert words in str(run.error)
    assert not run.weights
