"""Mixed precision without a GPU: bf16 autocast on the CPU, and weights stored in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import Spec, by_name, flat
from specs_of_modes import BASE, DEEP, METHODS
from torch import Tensor, nn

by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
ITEMS = classification(64, torch.float32)


@by_method
@pytest.mark.shows(mode="bf16 autocast, Trainer = float32", brief="`--bf16`", result="within rounding")
def test_bf16_is_float32_within_rounding(spec: Spec, train: Any) -> None:
    """The distance to the float32 run is a small part of the way the weights went, as it is for a stock Trainer."""
    arguments = BASE.arguments() | spec.arguments() | {"num_train_epochs": 1, "gradient_accumulation_steps": 2}
    full, mixed = train(Net(), ITEMS, **arguments), train(Net(), ITEMS, **arguments, bf16=True)
    way = (full.weights[-1] - flat(Net())).norm()
    assert (mixed.weights[-1] - full.weights[-1]).norm() < 0.05 * way
    assert mixed.weights[-1].dtype == torch.float32
    assert mixed.series("perturbation_norm") == pytest.approx(full.series("perturbation_norm"), rel=1e-2)
    assert mixed.series("sharpness") == pytest.approx(full.series("sharpness"), rel=0.3, abs=5e-3)


def loop(spec: Spec, outer: bool, inner: bool, plain_model: nn.Module | None = None) -> tuple[Tensor, list[float]]:
    """Final weights and sharpness of a loop with autocast around `backward`, inside the closure, or both."""
    model = plain_model or Net()
    optimizer = BASE.torch(model.parameters())
    method = spec.ours(model, optimizer)
    sharpness = []
    for (batch,) in steps_of(ITEMS, 8):

        def closure(batch: dict[str, Tensor] = batch) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=inner or outer):
                loss = model(**batch)["loss"]
            loss.backward()
            return loss.detach()

        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
        sharpness.append(float(method.metrics["sharpness"]))
    return flat(model), sharpness


@pytest.mark.parametrize("spec", [*METHODS, *DEEP], ids=str)
@pytest.mark.shows(mode="Autocast around `backward` = inside the closure", result="exact")
def test_autocast_around_the_passes(spec: Spec) -> None:
    """Autocast keeps casts of the weights as long as it is entered: no pass may use those of other weights."""
    inside, around = loop(spec, outer=False, inner=True), loop(spec, outer=True, inner=True)
    assert torch.equal(inside[0], around[0])
    assert inside[1] == around[1]
    assert all(value > 0 for value in around[1])


# Weights stored in half precision.

BF16_WEIGHTS = "Weights stored in bf16, rounded stochastically"
BF16_ITEMS = classification(48, torch.bfloat16)
IN_BF16 = {"base_optim": "adamw_torch", "learning_rate": 0.01, "max_steps": 6}
IN_BF16 |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}


@by_method
@pytest.mark.shows(mode="Weights stored in fp16", brief="Weights stored in fp16", result="refused")
def test_fp16_weights_are_refused(spec: Spec, train: Any) -> None:
    refused(spec, torch.float16, train)


@pytest.mark.parametrize("spec", by_name("wsam-decoupled"), ids=str)
@pytest.mark.shows(mode=BF16_WEIGHTS, brief="Weights stored in bf16", result="refused")
def test_bf16_weights_have_no_term_after_the_step(spec: Spec, train: Any) -> None:
    assert "mode='coupled'" in refused(spec, torch.bfloat16, train)


def refused(spec: Spec, dtype: torch.dtype, train: Any) -> str:
    """Before the first step, with the remedy."""
    run = train(Net().to(dtype), classification(16, dtype), **spec.arguments(), max_steps=2, catch=ValueError)
    assert not run.weights
    for words in (str(dtype), "dtype=torch.float32", "--bf16"):
        assert words in str(run.error)
    return str(run.error)


@pytest.mark.filterwarnings("ignore:.*stored in torch.bfloat16")
@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "xsam"), ids=str)
@pytest.mark.shows(mode=BF16_WEIGHTS, brief="Weights stored in bf16", result="within rounding")
def test_bf16_weights(spec: Spec, train: Any, tmp_path: Path) -> None:
    """Perturbed weights are rounded at random, from random numbers that a resumed run has too. How close a step comes
    to the exact one is in tests/engine/test_engine_precision.py."""
    arguments = IN_BF16 | spec.arguments()
    saving = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path / "saved")}
    whole = train(bf16_model(), BF16_ITEMS, **arguments | saving)
    rest = train(bf16_model(), BF16_ITEMS, resume=tmp_path / "saved" / "checkpoint-3", **arguments)
    assert torch.equal(torch.stack(rest.weights), torch.stack(whole.weights[3:]))
    moved = whole.series("perturbation_norm")
    assert min(moved) > 0.5 * spec.settings["rho"]


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.shows(
    mode="float32 weights out of a bf16 checkpoint, --bf16",
    brief="`--bf16` from a bf16 checkpoint",
    result="within rounding",
)
def test_weights_out_of_a_bf16_checkpoint(spec: Spec, train: Any, tmp_path: Path) -> None:
    """They move exactly, as all float32 weights do. A checkpoint that says where they began, as once, is resumed."""
    small = spec.arguments() | {"sam_rho": 1e-3, "bf16": True} | IN_BF16
    saving = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path / "saved")}
    model, items = bf16_model().float(), classification(48, torch.float32)
    whole = train(model, items, **small | saving)
    checkpoint = tmp_path / "saved" / "checkpoint-3"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"]["SharpnessCallback"]["attributes"]["began_on_grid"] = True
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    rest = train(model, items, resume=checkpoint, **small)
    assert torch.equal(torch.stack(rest.weights), torch.stack(whole.weights[3:]))
    assert whole.series("perturbation_norm") == pytest.approx([1e-3] * 6, rel=1e-3)


def test_bf16_weights_are_put_back(train: Any) -> None:
    """With rho 0 the run is the stock one bit for bit, dropout included: rounding at random takes nothing from the
    random numbers of the training, and the weights come back exactly."""
    ours = train(bf16_model(), BF16_ITEMS, **IN_BF16, optim="sam", sam_rho=0.0)
    stock = {name: value for name, value in IN_BF16.items() if name != "base_optim"}
    theirs = train(bf16_model(), BF16_ITEMS, stock=True, optim="adamw_torch", **stock)
    assert torch.equal(torch.stack(ours.weights), torch.stack(theirs.weights))


def bf16_model() -> Net:
    return Net(lambda: nn.Dropout(0.3)).bfloat16()
