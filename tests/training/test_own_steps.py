"""A training_step of the user's own, under every method and scope, against the same step done by hand in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from models import Net, classification, steps_of
from own_steps import EXTRA, ROWS, Extra, ExtraEachTime, Masked, Twice
from own_steps_by_hand import CASES, NOT_ADDITIVE, by_hand
from reference import Spec, by_name
from reference.methods import Plain

import hf_sharpness

METHODS = [
    *by_name("sam", "asam-k2", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3"),
    Spec("sam-device", "sam", {"rho": 0.2, "scope": "device"}),
    Spec("sam-micro-batch", "sam", {"rho": 0.2, "scope": "micro_batch"}),
    Spec("wsam-coupled-micro-batch", "wsam", {"rho": 0.2, "mode": "coupled", "gamma": 0.8, "scope": "micro_batch"}),
    Spec("wsam-decoupled-micro-batch", "wsam", {"rho": 0.2, "mode": "decoupled", "scope": "micro_batch"}),
]
ITEMS = classification(96)
OPTIONS = {"max_steps": 3, "learning_rate": 0.1, "max_grad_norm": 0.0}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
every_accumulation = pytest.mark.parametrize("accumulation", [1, 4])
SLOWER = ("asam-k2", "xsam-k3")  # several steps up the slope, which the other tests of this file have too
METHODS_IN_TURN = [
    pytest.param(spec, accumulation, marks=[pytest.mark.slow] if str(spec) in SLOWER and accumulation > 1 else [])
    for spec in METHODS
    for accumulation in (1, 4)
]


def of_ours(case: type) -> type:
    return type("Own", (case, hf_sharpness.Trainer), {})


def steps(accumulation: int) -> Any:
    return (steps_of(ITEMS, 8, accumulation) * 3)[:3]


@every_case
@pytest.mark.parametrize(("spec", "accumulation"), METHODS_IN_TURN, ids=str)
def test_as_by_hand(spec: Spec, accumulation: int, case: type, train: Any) -> None:
    if spec.settings.get("scope") == "micro_batch" and accumulation > 1 and case in NOT_ADDITIVE:
        pytest.skip("another step")
    arguments = {**spec.arguments(), "base_optim": "sgd", **OPTIONS, "gradient_accumulation_steps": accumulation}
    run = train(Net().double(), ITEMS, trainer_class=of_ours(case), **arguments)
    expected = by_hand(CASES[case], spec.reference(), steps(accumulation), lr=0.1)
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert "training_step" not in vars(run.trainer)


@pytest.mark.usually("^4")
@every_case
@every_accumulation
def test_the_step_by_hand_is_the_stock_one(accumulation: int, case: type, train: Any) -> None:
    """And rho 0 is the stock one bit for bit, dropout on."""
    options = {**OPTIONS, "gradient_accumulation_steps": accumulation}
    stock_class = type("Stock", (case, transformers.Trainer), {})
    run = train(Net().double(), ITEMS, trainer_class=stock_class, stock=True, optim="sgd", **options)
    expected = by_hand(CASES[case], Plain(), steps(accumulation), lr=0.1)
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(expected), rtol=1e-9, atol=1e-9)

    model = Net(lambda: torch.nn.Dropout(0.3)).double()
    stock = train(model, ITEMS, trainer_class=stock_class, stock=True, optim="sgd", **options)
    for scope in ("global", "micro_batch"):
        if scope == "micro_batch" and accumulation > 1 and case in NOT_ADDITIVE:
            continue
        arguments = {"optim": "sam", "base_optim": "sgd", "sam_rho": 0.0, "sam_scope": scope, **options}
        ours = train(model, ITEMS, trainer_class=of_ours(case), **arguments)
        for mine, theirs in zip(ours.weights, stock.weights, strict=True):
            if scope == "global":
                assert torch.equal(mine, theirs)
            torch.testing.assert_close(mine, theirs)
        assert ours.series("loss") == pytest.approx(stock.series("loss"), rel=1e-12)


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.parametrize(("case", "times"), [(Extra, 1), (ExtraEachTime, 4)])
def test_an_extra_gradient_arrives_as_it_is(case: type, times: int, spec: Spec, train: Any) -> None:
    """Of a loss that does not change with the weights nothing else is left."""

    class Flat(of_ours(case)):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * 0.0

    arguments = {**spec.arguments(), "base_optim": "sgd", **OPTIONS, "gradient_accumulation_steps": 4, "max_steps": 1}
    run = train(Net().double(), ITEMS, trainer_class=Flat, **arguments)
    moved = torch.cat([p.detach().flatten() for p in Net().double().parameters()]) - run.weights[0]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1 * EXTRA * times), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.parametrize("base", ["sgd", "adamw_torch"])
def test_what_a_mask_freezes_does_not_move(base: str, spec: Spec, train: Any) -> None:
    arguments = {**spec.arguments(), "base_optim": base, **OPTIONS, "gradient_accumulation_steps": 4}
    run = train(Net().double(), ITEMS, trainer_class=of_ours(Masked), **arguments)
    before, after = Net().double().first.weight, run.model.first.weight
    assert torch.equal(after[:ROWS], before[:ROWS])
    assert (after[ROWS:] != before[ROWS:]).all()


class LastLeftOut(Twice):
    """Skips the last micro-batch of every step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return torch.zeros(()) if self.accelerator.sync_gradients else super().training_step(*args, **kwargs)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_a_whole_step_whose_last_micro_batch_is_skipped(spec: Spec, train: Any) -> None:
    """Also the first of them, which is taken back and anew."""

    def by_the_others(net: Any, batch: Any, g: Any, n: int, last: bool) -> Any:
        return (g, torch.zeros(())) if last else CASES[Twice](net, batch, g, n, last)

    arguments = {**spec.arguments(), "base_optim": "sgd", **OPTIONS, "gradient_accumulation_steps": 2}
    run = train(Net().double(), ITEMS, trainer_class=of_ours(LastLeftOut), **arguments)
    expected = by_hand(by_the_others, spec.reference(), steps(2), lr=0.1)
    torch.testing.assert_close(torch.stack(run.weights), torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_skipped_micro_batch_of_the_first_step_has_happened(position: int, train: Any) -> None:
    """What a call that leaves no gradient counts and draws stays, though the step is taken anew."""

    class Filtered:
        """Draws, counts, and leaves out a micro-batch of the first step."""

        calls = 0

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            noise = torch.randn(())
            self.calls += 1
            loss = model(**self._prepare_inputs(inputs))["loss"] * (1 + 0.1 * noise)
            if self.calls == position + 1:
                return loss.detach()
            self.accelerator.backward(loss / 3)
            return loss.detach() / 3

    options = {**OPTIONS, "gradient_accumulation_steps": 3, "logging_steps": 1}
    stock_class = type("Stock", (Filtered, transformers.Trainer), {})
    stock = train(Net().double(), ITEMS, trainer_class=stock_class, stock=True, optim="sgd", **options)
    arguments = {"optim": "sam", "base_optim": "sgd", "sam_rho": 0.0, **options}
    ours = train(Net().double(), ITEMS, trainer_class=of_ours(Filtered), **arguments)
    assert ours.trainer.calls == stock.trainer.calls == 9
    for mine, theirs in zip(ours.weights, stock.weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert ours.series("loss") == pytest.approx(stock.series("loss"), rel=1e-10)
