"""Mixed precision without a GPU: bf16 and fp16 autocast on the CPU, a real GradScaler, weights stored in bf16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from models import Net, Saboteur, classification, steps_of
from reference import Spec, by_name, flat
from specs_of_modes import BASE, DEEP, MAX_NORM, METHODS
from torch import Tensor, nn

import hf_sharpness

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


# A real GradScaler through the plain loop; more of it in tests/engine/test_engine_scaler.py.


class Overflowing:
    """A loop with a GradScaler over (fused) AdamW whose backward number n of step `at` overflows, for n in `where`."""

    def __init__(self, spec: Spec | None, fused: bool, clip: bool, where: frozenset[int] = frozenset(), at: int = -1):
        self.network = Net(Saboteur).double()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01, fused=fused)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        self.method = None if spec is None else spec.ours(self.network, self.optimizer)
        self.clip, self.states, self.scales = clip, [self.state()], []
        for number, (batch,) in enumerate(steps_of(classification(48), 8)):
            self.overflow_in(where if number == at else frozenset())
            self.step(batch)
            self.states.append(self.state())
            self.scales.append(self.scaler.get_scale())

    def overflow_in(self, where: frozenset[int]) -> None:
        saboteur = self.network.middle
        start = saboteur.backwards
        saboteur.on_backward = lambda n, g: g * (float("inf") if n - start in where else 1.0)

    def step(self, batch: dict[str, Tensor]) -> None:
        def closure() -> Tensor:
            loss = self.network(**batch)["loss"]
            self.scaler.scale(loss).backward()
            return loss.detach()

        closure() if self.method is None else self.method.backward(closure)
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def state(self) -> list[Tensor]:
        moments = [t for state in self.optimizer.state.values() for t in state.values()]
        return [flat(self.network), *[t.clone() for t in moments]]


WHERE = {"ascent": frozenset({1}), "replay": frozenset({2}), "both": frozenset({1, 2})}
kinds = pytest.mark.parametrize(("fused", "clip"), [(False, True), (True, True), (True, False), (False, False)])


@pytest.mark.parametrize("where", list(WHERE))
@kinds
@by_method
@pytest.mark.shows(mode="fp16 overflow, GradScaler, plain loop", result="skipped as stock")
def test_overflow_skips_as_stock(spec: Spec, fused: bool, clip: bool, where: str) -> None:
    """AdamW fused and not, clipped and not: state untouched bit for bit, scale as in a stock loop that overflows."""
    ours = Overflowing(spec, fused, clip, WHERE[where], at=2)
    stock = Overflowing(None, fused, clip, frozenset({1}), at=2)
    assert ours.scales == stock.scales
    assert all(torch.equal(a, b) for a, b in zip(ours.states[2], ours.states[3], strict=True))
    assert not torch.equal(ours.states[3][0], ours.states[4][0])
    assert ours.states[-1][0].isfinite().all()


@kinds
@by_method
@pytest.mark.shows(mode="fp16 scaled, GradScaler, plain loop = unscaled", result="exact")
def test_scaling_changes_nothing(spec: Spec, fused: bool, clip: bool, plain: Any) -> None:
    """Also where a fused AdamW unscales within its own step."""
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps = steps_of(classification(48), 8)
    weights = plain(model, steps, optimizer, spec.ours(model, optimizer), max_norm=MAX_NORM if clip else None)
    scaled = Overflowing(spec, fused, clip)
    for state, expected in zip(scaled.states[1:], weights, strict=True):
        torch.testing.assert_close(state[0], expected, rtol=0, atol=1e-9)


# The same through Trainer and Accelerate, which offer fp16 on accelerators only: a CPU scaler is put where Accelerate
# keeps its own. From there on everything is theirs: scaling, unscaling, skipping, schedule.


@pytest.fixture
def clean_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def scaled_trainer(base: type, autocast: bool) -> type:
    class Scaled(base):
        """A Trainer whose accelerator has a GradScaler, with fp16 autocast or (to compare exactly) without."""

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            accelerator = self.accelerator
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
            if autocast:
                accelerator.native_amp = True
                accelerator.state._mixed_precision = "fp16"
            else:
                accelerator.unscale_gradients = lambda *_: accelerator.scaler.unscale_(self.optimizer.optimizer)

    return Scaled


class Watch(transformers.TrainerCallback):
    """After every step: was it skipped, the scale, the learning rate, the weights, the optimizer's state."""

    def __init__(self, where: frozenset[int]) -> None:
        self.where = where
        self.skipped: list[bool] = []
        self.scales: list[float] = []
        self.rates: list[float] = []
        self.states: list[list[Tensor]] = []
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        saboteur = model.middle
        start = saboteur.backwards
        bad = {start + 2 * n for n in self.where} if state.global_step == 2 else set()  # the last of two micro-batches
        saboteur.on_backward = lambda n, g: g * (float("inf") if n in bad else 1.0)

    def on_step_end(self, *args: Any, model: Any, optimizer: Any, lr_scheduler: Any, **kwargs: Any) -> None:
        self.skipped.append(self.trainer.accelerator.optimizer_step_was_skipped)
        self.scales.append(self.trainer.accelerator.scaler.get_scale())
        self.rates.append(lr_scheduler.get_last_lr()[0])
        moments = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
        self.states.append([flat(model), *[t.clone() for t in moments]])


def run_scaled(
    train: Any, spec: Spec | None, where: frozenset[int], model: nn.Module, autocast: bool, **arguments: Any
) -> Watch:
    """Five steps of two micro-batches; in the third the last backward of pass n overflows, for n in `where`."""
    watch = Watch(where)

    class WithWatch(scaled_trainer((transformers if spec is None else hf_sharpness).Trainer, autocast)):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            watch.trainer = self

    defaults = {"max_steps": 5, "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear"}
    defaults |= {"learning_rate": 0.01, "per_device_train_batch_size": 4}
    run = train(
        model,
        classification(40, next(model.parameters()).dtype),
        stock=spec is None,
        trainer_class=WithWatch,
        callbacks=[watch],
        **defaults | arguments | ({} if spec is None else spec.arguments()),
    )
    assert run.error is None
    return watch


@pytest.mark.parametrize(("optim", "skipped"), [("adamw_torch", True), ("adamw_torch_fused", False)])
@pytest.mark.parametrize("max_norm", [MAX_NORM, 0.0], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("where", list(WHERE))
@by_method
@pytest.mark.shows(
    mode="fp16 overflow, GradScaler, Trainer", brief="`--fp16`: overflow in any pass", result="skipped as stock"
)
def test_trainer_skips_as_stock(
    spec: Spec, where: str, max_norm: float, optim: str, skipped: bool, train: Any, clean_accelerate: None
) -> None:
    """fp16 autocast, accumulation: schedule and scale as stock, state untouched. (A fused optimizer skips within its
    step: Accelerate does not notice, so that stock advances the schedule, and so do we.)"""
    ours = run_scaled(train, spec, WHERE[where], Net(Saboteur), True, max_grad_norm=max_norm, base_optim=optim)
    stock = run_scaled(train, None, frozenset({1}), Net(Saboteur), True, max_grad_norm=max_norm, optim=optim)
    assert ours.skipped == stock.skipped == [False, False, skipped, False, False]
    assert ours.scales == stock.scales
    assert ours.rates == stock.rates
    assert all(torch.equal(a, b) for a, b in zip(ours.states[1], ours.states[2], strict=True))
    assert not torch.equal(ours.states[2][0], ours.states[3][0])
    assert ours.states[-1][0].isfinite().all()


@pytest.mark.parametrize("max_norm", [MAX_NORM, 0.0], ids=["clipped", "unclipped"])
@by_method
@pytest.mark.shows(mode="fp16 scaled, GradScaler, Trainer = unscaled", result="exact")
def test_trainer_scaling_changes_nothing(spec: Spec, max_norm: float, train: Any, clean_accelerate: None) -> None:
    scaled = run_scaled(train, spec, frozenset(), Net(Saboteur).double(), False, max_grad_norm=max_norm)
    unscaled = train(
        Net().double(),
        classification(40),
        **spec.arguments(),
        max_steps=5,
        gradient_accumulation_steps=2,
        lr_scheduler_type="linear",
        learning_rate=0.01,
        max_grad_norm=max_norm,
        per_device_train_batch_size=4,
    )
    assert not any(scaled.skipped)
    for state, weights in zip(scaled.states, unscaled.weights, strict=True):
        torch.testing.assert_close(state[0], weights, rtol=0, atol=1e-9)


@by_method
@pytest.mark.shows(mode="fp16 autocast with GradScaler, Trainer = float32", brief="`--fp16`", result="within rounding")
def test_fp16_is_float32_within_rounding(spec: Spec, train: Any, clean_accelerate: None) -> None:
    arguments = BASE.arguments()
    mixed = run_scaled(train, spec, frozenset(), Net(Saboteur), True, **arguments)
    full = run_scaled(train, spec, frozenset(), Net(Saboteur), False, **arguments)
    way = (full.states[-1][0] - flat(Net())).norm()
    assert (mixed.states[-1][0] - full.states[-1][0]).norm() < 0.01 * way


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
