"""What must be bit for bit transformers' own Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import BUFFERED, Net, Saboteur, buffers_of, classification
from torch import nn

ITEMS = classification(56, torch.float32)
COMMON = {
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "learning_rate": 0.01,
    "max_grad_norm": 0.5,
    "shuffle": True,
}
BASES = {
    "default": {},
    "adamw": {"optim": "adamw_torch"},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adafactor": {"optim": "adafactor"},
}


def noisy(norm: str = "batch_norm_1d") -> Net:
    """Dropout and a BatchNorm."""
    return Net(lambda: nn.Sequential(nn.Dropout(0.3), BUFFERED[norm](), nn.Dropout(0.2)))


def under(method: dict[str, Any], stock: dict[str, Any]) -> dict[str, Any]:
    """The stock arguments with their optimizer as the base of a method."""
    base = {"base_optim": stock["optim"]} if "optim" in stock else {}
    return stock | base | method


SKIPPED_KEYS = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


def history(run: Any, keys: set[str]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k in keys} for entry in run.trainer.state.log_history]


def assert_identical(ours: Any, stock: Any) -> None:
    """Weights after every step, buffers, optimizer state, random stream, and every series the stock run logged."""
    assert len(ours.weights) == len(stock.weights) > 0
    for step, (mine, theirs) in enumerate(zip(ours.weights, stock.weights, strict=True)):
        assert torch.equal(mine, theirs), step
    buffers = buffers_of(stock.model)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in buffers_of(ours.model).items())
    optimizers = [run.trainer.optimizer.state_dict() for run in (ours, stock)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0, equal_nan=True)
    keys = {key for entry in stock.trainer.state.log_history for key in entry} - SKIPPED_KEYS - {"total_flos"}
    assert history(ours, keys) == history(stock, keys)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("name", ["Trainer", "Seq2SeqTrainer", "mixin"])
def test_a_stock_optimizer(name: str, base: dict[str, Any], train: Any, libraries: Any) -> None:
    """With a stock `optim` the subclasses add nothing, not even to the logs."""
    ours, transformers = libraries
    arguments_name = "Seq2SeqTrainingArguments" if name == "Seq2SeqTrainer" else "TrainingArguments"
    stock = train(
        noisy(),
        ITEMS,
        stock=True,
        trainer_class=getattr(transformers, name, None),
        arguments_class=getattr(transformers, arguments_name),
        **COMMON | base,
    )
    trainer_class = getattr(ours, name, None) or type("Mixed", (ours.SharpnessTrainerMixin, transformers.Trainer), {})
    run = train(
        noisy(),
        ITEMS,
        trainer_class=trainer_class,
        arguments_class=getattr(ours, arguments_name),
        **COMMON | base,
    )
    assert_identical(run, stock)
    logged = [[set(entry) for entry in r.trainer.state.log_history] for r in (run, stock)]
    assert logged[0] == logged[1]
    assert run.trainer.state.total_flos == stock.trainer.state.total_flos
    assert list(run.trainer.state.stateful_callbacks) == list(stock.trainer.state.stateful_callbacks)


RHO_0 = {
    "sam": {"optim": "sam", "sam_rho": 0.0},
    "sam-k2": {"optim": "sam", "sam_rho": 0.0, "sam_steps": 2},
    "asam": {"optim": "sam", "sam_rho": 0.0, "sam_adaptive": True},
    "sam-micro-batch": {"optim": "sam", "sam_rho": 0.0, "sam_scope": "micro_batch"},
    "wsam-decoupled": {"optim": "wsam", "sam_rho": 0.0, "wsam_mode": "decoupled"},
}


NORM_AND_BASE = [("batch_norm_1d", base) for base in BASES] + [
    ("batch_norm_2d", "default"),
    ("rebound_batch_norm", "default"),
    ("spectral_norm", "default"),
    ("spectral_parametrization", "default"),
]


@pytest.mark.parametrize(("norm", "base"), NORM_AND_BASE)
@pytest.mark.parametrize("method", RHO_0.values(), ids=RHO_0)
def test_rho_0(method: dict[str, Any], norm: str, base: str, train: Any) -> None:
    """Dropout, BatchNorm, shuffling, accumulation, a short last step; the replay is really made."""
    base = BASES[base]
    run = train(noisy(norm), ITEMS, **COMMON | under(method, base))
    assert_identical(run, train(noisy(norm), ITEMS, stock=True, **COMMON | base))
    assert all(sharpness == pytest.approx(0.0, abs=1e-6) for sharpness in run.series("sharpness"))


class Stream(torch.utils.data.IterableDataset):
    """Of no known length: the Trainer only learns at its end that a step has too few micro-batches."""

    def __iter__(self) -> Any:
        return iter(ITEMS)


@pytest.mark.parametrize("method", RHO_0.values(), ids=RHO_0)
def test_rho_0_on_a_stream(method: dict[str, Any], train: Any) -> None:
    """Seven micro-batches an epoch in steps of two."""
    arguments = COMMON | {"max_steps": 8}
    run = train(noisy(), Stream(), **arguments | method)
    assert_identical(run, train(noisy(), Stream(), stock=True, **arguments))


@pytest.mark.parametrize("method", RHO_0.values(), ids=RHO_0)
def test_rho_0_in_bf16(method: dict[str, Any], train: Any) -> None:
    """Autocast over float32 weights."""
    arguments = COMMON | {"bf16": True}
    run = train(noisy(), ITEMS, **arguments | method)
    assert_identical(run, train(noisy(), ITEMS, stock=True, **arguments))


NEARLY = {
    "wsam-coupled": {"optim": "wsam", "wsam_mode": "coupled"},
    "wsam-coupled-strong": {"optim": "wsam", "wsam_mode": "coupled", "wsam_gamma": 0.9},
    "xsam": {"optim": "xsam"},
    "xsam-k3": {"optim": "xsam", "sam_steps": 3},
    "xsam-alpha": {"optim": "xsam", "xsam_alpha": 0.3},
    "xsam-rho-max": {"optim": "xsam", "xsam_rho_max": 0.5},
}


@pytest.mark.parametrize("method", NEARLY.values(), ids=NEARLY)
def test_rho_0_within_rounding(method: dict[str, Any], train: Any) -> None:
    """Where the update does arithmetic of its own; nothing is divided by the displacement of zero length."""
    base = BASES["sgd"]
    run = train(noisy(), ITEMS, **COMMON | under(method, base), sam_rho=0.0)
    stock = train(noisy(), ITEMS, stock=True, **COMMON | base)
    torch.testing.assert_close(run.weights[-1], stock.weights[-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("scope", ["global", "micro_batch"])
@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_gamma_0(mode: str, scope: str, base: dict[str, Any], train: Any) -> None:
    method = {"optim": "wsam", "wsam_mode": mode, "wsam_gamma": 0.0, "sam_rho": 0.5, "sam_scope": scope}
    run = train(noisy(), ITEMS, **COMMON | under(method, base))
    assert_identical(run, train(noisy(), ITEMS, stock=True, **COMMON | base))


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ({"optim": "wsam", "wsam_gamma": 0.0}, 1),
        ({"optim": "wsam", "wsam_gamma": 0.0, "wsam_mode": "coupled"}, 1),
        ({"optim": "sam", "sam_rho": 0.0}, 2),
        ({"optim": "wsam", "sam_rho": 0.0, "wsam_mode": "decoupled"}, 2),
        ({"optim": "sam", "sam_steps": 3}, 4),
        ({"optim": "sam", "sam_scope": "micro_batch"}, 2),
    ],
    ids=str,
)
def test_passes_made(method: dict[str, Any], passes: int, train: Any) -> None:
    """gamma = 0 makes no second pass, rho = 0 makes it."""
    run = train(Net(Saboteur), ITEMS, **method, num_train_epochs=2, gradient_accumulation_steps=2)
    assert run.model.middle.forwards == run.model.middle.backwards == 2 * 7 * passes


@pytest.mark.parametrize("optim", ["wsam", "xsam", "sgd"])
def test_checkpoints(optim: str, train: Any, tmp_path: Path) -> None:
    """The same files with the same contents in kind, no sharpness buffer; under a method a note of it in JSON."""
    method = {"optim": "sgd"} if optim == "sgd" else {"optim": optim, "base_optim": "sgd"}
    for name, arguments in (("stock", {"optim": "sgd"}), ("ours", method)):
        train(
            noisy(),
            ITEMS,
            stock=name == "stock",
            **COMMON | arguments,
            optim_args="momentum=0.9",
            output_dir=str(tmp_path / name),
            save_strategy="steps",
            save_steps=3,
        )
    ours, stock = (tmp_path / name / "checkpoint-3" for name in ("ours", "stock"))
    files, stock_files = ({path.name for path in folder.iterdir()} for folder in (ours, stock))
    assert stock_files <= files
    for extra in files - stock_files:
        assert optim != "sgd", extra
        assert extra.endswith(".json"), extra
        assert (ours / extra).stat().st_size < 4096, extra
    for file in ("optimizer.pt", "scheduler.pt"):
        mine, theirs = (torch.load(folder / file, weights_only=False) for folder in (ours, stock))
        assert shape(mine) == shape(theirs)
    assert (ours / "optimizer.pt").stat().st_size == pytest.approx((stock / "optimizer.pt").stat().st_size, abs=256)


def shape(value: Any) -> Any:
    """The structure of a state dict, without its numbers."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(item) for item in value]
    return value.shape if isinstance(value, torch.Tensor) else type(value)
