"""Checkpoints: resuming in the middle of an epoch is bit for bit, and stock checkpoints are interchangeable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import BUFFERED, Net, classification
from reference import BASES, Base, Spec, by_name
from torch import nn

ITEMS = classification(80, torch.float32)  # five steps an epoch
COMMON = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 3,
    "max_grad_norm": 0.5,
    "shuffle": True,
    "save_strategy": "steps",
    "save_steps": 1,
}


def noisy() -> Net:
    return Net(lambda: nn.Sequential(nn.Dropout(0.3), BUFFERED["batch_norm_1d"]()))


METHODS = [
    *by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3"),
    Spec("xsam-by-steps", "xsam", {"rho": 0.3, "refresh": 4}),
    Spec("xsam-rarely", "xsam", {"rho": 0.3, "refresh": 9}),
]
CASES = [pytest.param(spec, base, id=f"{spec}-{base}") for spec in METHODS for base in BASES[1:]]


@pytest.mark.usually("^(sam-micro-batch|wsam-decoupled|xsam-k3|xsam-rarely).*-adamw")
@pytest.mark.parametrize(("spec", "base"), CASES)
def test_resume_is_bit_for_bit(spec: Spec, base: Base, train: Any, checkpoint: Any) -> None:
    """From the middle of the second epoch, from its last step, and from an epoch's end: weights, logs, alpha*."""
    arguments = COMMON | spec.arguments() | base.arguments()
    whole = train(noisy(), ITEMS, **arguments)
    alphas = whole.series("xsam_alpha")
    for step in (7, 9, 10):
        torch.manual_seed(step)
        rest = train(noisy(), ITEMS, resume=checkpoint(step), **arguments | {"save_strategy": "no"})
        assert len(rest.weights) == 15 - step
        for number, (ours, expected) in enumerate(zip(rest.weights, whole.weights[step:], strict=True)):
            assert torch.equal(ours, expected), (step, number)
        assert rest.series("xsam_alpha") == alphas
        assert rest.series("loss") == whole.series("loss")
        assert rest.trainer.state.total_flos == whole.trainer.state.total_flos
    if spec.method == "xsam":
        assert len(alphas) == 15
        assert any(alpha not in (0.0, 1.0) for alpha in alphas)


@pytest.mark.parametrize("base", BASES[1:], ids=str)
def test_a_stock_checkpoint_and_back(base: Base, train: Any, checkpoint: Any, tmp_path: Path) -> None:
    """stock -> wsam with gamma 0 -> stock, through two checkpoints, is the stock run bit for bit."""
    arguments = COMMON | base.arguments()
    stock = arguments | {"optim": arguments["base_optim"]}
    del stock["base_optim"]
    whole = train(noisy(), ITEMS, stock=True, **stock)
    wsam = arguments | {"optim": "wsam", "wsam_gamma": 0.0, "output_dir": str(tmp_path / "wsam")}
    middle = train(noisy(), ITEMS, resume=checkpoint(4), **wsam)
    assert torch.equal(middle.weights[-1], whole.weights[-1])
    end = train(noisy(), ITEMS, stock=True, resume=checkpoint(8, "wsam"), **stock | {"save_strategy": "no"})
    assert torch.equal(end.weights[-1], whole.weights[-1])


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_switching_between_stock_and_every_method(spec: Spec, train: Any, checkpoint: Any, tmp_path: Path) -> None:
    """A stock checkpoint resumes under the method, and the method's checkpoint under the stock Trainer: the weights
    and optimizer state taken over are those saved."""
    base = BASES[2].arguments()
    stock = COMMON | base | {"optim": base["base_optim"]}
    del stock["base_optim"]
    train(noisy(), ITEMS, stock=True, **stock)
    method = COMMON | base | spec.arguments() | {"output_dir": str(tmp_path / "o")}
    ours = train(noisy(), ITEMS, resume=checkpoint(4), **method)
    assert len(ours.weights) == 11
    assert ours.weights[-1].isfinite().all()
    assert len(ours.series("perturbed_loss")) == 11
    back = train(noisy(), ITEMS, stock=True, resume=checkpoint(13, "o"), **stock | {"save_strategy": "no"})
    assert len(back.weights) == 2
    assert (back.weights[-1] - ours.weights[-1]).norm() < 0.1
    steps = [int(state["step"]) for state in back.trainer.optimizer.state_dict()["state"].values()]
    assert set(steps) == {15}


def test_alpha_is_taken_over_by_its_own_value(train: Any, checkpoint: Any) -> None:
    """The checkpoint's alpha*, not a fresh search, is used until the next refresh."""
    import json

    spec = Spec("", "xsam", {"rho": 0.3})
    arguments = COMMON | spec.arguments() | BASES[1].arguments()
    whole = train(noisy(), ITEMS, **arguments)
    file = checkpoint(7) / "trainer_state.json"
    text = file.read_text()
    alpha = whole.series("xsam_alpha")[6]
    saved = json.loads(text)["stateful_callbacks"]
    assert str(alpha) in json.dumps(saved)
    state = json.loads(text)
    state["stateful_callbacks"] = json.loads(json.dumps(saved).replace(str(alpha), "0.123"))
    file.write_text(json.dumps(state))
    rest = train(noisy(), ITEMS, resume=checkpoint(7), **arguments | {"save_strategy": "no"})
    assert rest.series("xsam_alpha")[7:10] == [0.123] * 3
    assert rest.series("xsam_alpha")[10] != 0.123


@pytest.mark.parametrize("optim", ["sam", "wsam", "xsam"])
def test_train_twice(optim: str, train: Any) -> None:
    """A second train() on one trainer is a new run with the same result: nothing of the first one is left."""
    run = train(Net(), ITEMS, optim=optim, base_optim="sgd", num_train_epochs=1)
    first = run.weights[:]
    run.weights.clear()
    run.model.load_state_dict(Net().state_dict())
    run.trainer.train()
    assert all(torch.equal(one, other) for one, other in zip(first, run.weights, strict=True))
