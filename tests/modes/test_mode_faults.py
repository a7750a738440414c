"""Faults in the middle of a step: exceptions and interrupts in callbacks and passes, and NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from faults import ITEMS, accumulations, by_method, calls, few_probes, saved_weights
from models import Net, Saboteur
from reference import Spec, flat
from specs_of_modes import BASE, without_decay
from torch import Tensor, nn

EVENTS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_save",
    "on_evaluate",
    "on_epoch_end",
    "on_train_end",
]


class Bomb(transformers.TrainerCallback):
    """Raises at the n-th event of a run (0: never), whatever it is; keeps the events' names."""

    def __init__(self, number: int = 0, error: type[BaseException] = KeyboardInterrupt):
        self.number, self.error = number, error
        self.events: list[str] = []
        self.weights_before: Tensor | None = None

    def pass_by(self, name: str, model: nn.Module) -> None:
        self.events.append(name)
        if len(self.events) == self.number:
            self.weights_before = flat(model)
            raise self.error("boom")


def event_hook(name: str) -> Callable[..., None]:
    def hook(self: Bomb, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.pass_by(name, model)

    return hook


for event in EVENTS:
    setattr(Bomb, event, event_hook(event))


def run_with(train: Any, spec: Spec, accumulation: int, bomb: Bomb, model: nn.Module | None = None) -> Any:
    arguments = few_probes(spec).arguments() | without_decay(BASE).arguments()
    return train(
        model or Net(),
        ITEMS[: 16 * accumulation],
        **arguments,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        trainer_options={"eval_dataset": ITEMS[:8]},
        callbacks=[bomb],
        catch=(KeyboardInterrupt, RuntimeError),
    )


@pytest.mark.usually("wsam-decoupled-3|xsam-1")
@accumulations
@by_method
@pytest.mark.shows(mode="Exception or interrupt in any callback, Trainer", result="clean")
def test_a_fault_in_any_callback(spec: Spec, accumulation: int, train: Any) -> None:
    """At every event of a run of two steps: what the event saw is what is left, and was a step of the smooth run."""
    smooth = Bomb()
    weights = [flat(Net()), *run_with(train, spec, accumulation, smooth).weights]
    assert set(smooth.events) == set(EVENTS) - ({"on_substep_end"} if accumulation == 1 else set())
    for number in range(1, len(smooth.events) + 1):
        bomb = Bomb(number, (KeyboardInterrupt, RuntimeError)[number % 2])
        run = run_with(train, spec, accumulation, bomb)
        assert "boom" in str(run.error)
        assert torch.equal(flat(run.model), bomb.weights_before), bomb.events[-1]
        assert any(torch.equal(flat(run.model), w) for w in weights), bomb.events[-1]


@pytest.mark.usually("(wsam-decoupled|xsam)-.*-3")
@accumulations
@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
@by_method
@pytest.mark.shows(mode="Exception or interrupt in any forward, backward or optimizer step, Trainer", result="clean")
def test_a_fault_in_any_pass_of_a_trainer(spec: Spec, place: str, accumulation: int, train: Any) -> None:
    """In the second step: the weights are those after the first, and so is the newest checkpoint."""
    forwards = calls(spec, accumulation)
    backwards = accumulation * (1 + spec.settings.get("steps", 1))
    total, first = {"forward": (forwards, forwards), "backward": (backwards, backwards), "optimizer": (1, 1)}[place]
    for number in range(1, total + 1):
        error = (KeyboardInterrupt, RuntimeError)[number % 2]

        def blow(n: int, *gradient: Tensor, number: int = number, error: type = error) -> Any:
            if n == first + number:
                raise error("boom")
            return gradient[0] if gradient else None

        bomb = Bomb()
        if place == "optimizer":
            stepped: list[int] = []

            def on_pre_optimizer_step(
                self: Any, *args: Any, optimizer: Any, stepped: list[int] = stepped, blow: Any = blow, **kwargs: Any
            ) -> None:
                if not stepped:
                    optimizer.optimizer.register_step_pre_hook(lambda *_: blow(len(stepped)))
                stepped.append(1)

            bomb.on_pre_optimizer_step = on_pre_optimizer_step.__get__(bomb)
            run = run_with(train, spec, accumulation, bomb)
        else:
            saboteur = {f"on_{place}": blow}
            run = run_with(train, spec, accumulation, bomb, Net(lambda s=saboteur: Saboteur(**s)))
        assert "boom" in str(run.error)
        assert len(run.weights) == 1
        assert torch.equal(flat(run.model), run.weights[0]), number
        assert torch.equal(saved_weights(Path(run.trainer.args.output_dir) / "checkpoint-1"), run.weights[0])


def poisoned(number: int) -> Net:
    """The loss of forward pass `number` is NaN."""

    def forward(n: int) -> None:
        state["bad"] = n == number

    state = {"bad": False}
    model = Net(lambda: Saboteur(on_forward=forward))
    model.last.register_forward_hook(lambda m, i, out: out * float("nan") if state["bad"] and m.training else None)
    return model


class BeforeStep(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.seen.append(flat(model))


@accumulations
@by_method
@pytest.mark.shows(mode="NaN loss in any pass, no scaler", brief="NaN loss", result="clean")
def test_a_loss_that_is_not_a_number(spec: Spec, accumulation: int, train: Any) -> None:
    """In any forward of the second step: when the base optimizer is about to step the weights are those after the
    first step, bit for bit. (It may then spoil them, as a stock Trainer does.)"""
    first = calls(spec, accumulation)
    for number in range(first + 1, 2 * first + 1):
        before = BeforeStep()
        run = train(
            poisoned(number),
            ITEMS[: 16 * accumulation],
            **few_probes(spec).arguments() | without_decay(BASE).arguments(),
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            callbacks=[before],
        )
        assert torch.equal(before.seen[1], run.weights[0]), number
