"""fp16 without a GPU: a real GradScaler on the CPU, in a plain loop and in the Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from models import Net, Saboteur, classification, steps_of
from reference import Spec, flat
from specs_of_modes import BASE, MAX_NORM, METHODS
from torch import Tensor, nn

import hf_sharpness

by_method = pytest.mark.parametrize("spec", METHODS, ids=str)


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
