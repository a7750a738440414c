"""The weights that user code can see during a Trainer run: never perturbed ones, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, Saboteur, classification
from reference import BASES, Spec, by_name, flat
from transformers import TrainerCallback

import hf_sharpness

METHODS = by_name("sam", "asam-k2", "wsam-coupled", "wsam-decoupled", "wsam-coupled-k3", "xsam", "xsam-k3")
METHODS.append(Spec("micro-batch", "wsam", {"rho": 0.2, "mode": "decoupled", "scope": "micro_batch"}))
every_method = pytest.mark.parametrize("spec", METHODS, ids=str)
every_accumulation = pytest.mark.parametrize("accumulation", [1, 3])
EVENTS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_evaluate",
    "on_save",
    "on_log",
    "on_epoch_end",
    "on_train_end",
)


class Watcher(TrainerCallback):
    """Keeps the weights it sees, under the name of the event."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, torch.Tensor]] = []


for event in EVENTS:

    def watch(self: Watcher, *args: Any, model: Any = None, event: str = event, **kwargs: Any) -> None:
        self.seen.append((event, flat(model)))

    setattr(Watcher, event, watch)


@every_accumulation
@every_method
def test_what_callbacks_see(spec: Spec, accumulation: int, train: Any, tmp_path: Any) -> None:
    """Between two optimizer steps every event sees the same weights, and the step ends with its last term."""
    watcher = Watcher()
    items = classification(48, torch.float32)
    run = train(
        Net(),
        items,
        callbacks=[watcher],
        **spec.arguments() | BASES[1].arguments(),
        num_train_epochs=2,
        gradient_accumulation_steps=accumulation,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        trainer_options={"eval_dataset": items[:8]},
    )
    assert {event for event, _ in watcher.seen} >= set(EVENTS) - {"on_substep_end"}
    current = flat(Net())
    steps = 0
    for event, weights in watcher.seen:
        if event == "on_optimizer_step":
            current = run.weights[steps]
            steps += 1
        assert torch.equal(weights, current), (event, steps)
    assert steps == len(run.weights)


def test_what_is_evaluated_and_saved(train: Any, tmp_path: Any) -> None:
    """The checkpoint of step 2 holds the weights after step 2."""
    from safetensors.torch import load_file

    run = train(Net(), classification(32, torch.float32), optim="sam", max_steps=4, save_strategy="steps", save_steps=2)
    saved = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    weights = load_file(saved) if saved.exists() else torch.load(saved.with_name("pytorch_model.bin"))
    names = [name for name, _ in run.model.named_parameters()]
    assert torch.equal(torch.cat([weights[name].flatten() for name in names]), run.weights[1])


def calls_in_a_step(spec: Spec, place: str, accumulation: int) -> int:
    probes = 21 * (spec.method == "xsam" and place == "forward")
    return accumulation * (spec.settings.get("steps", 1) + 1 + probes)


def failing(number: int, place: str, error: BaseException) -> Net:
    """A net that raises at call `number` of `place`."""

    def hook(n: int, *gradient: torch.Tensor) -> Any:
        if n == number:
            raise error
        return gradient[0] if gradient else None

    return Net(lambda: Saboteur(**{f"on_{place}": hook}))


@pytest.mark.usually("^(sam|wsam-decoupled|xsam-k3)-3")
@pytest.mark.parametrize("place", ["forward", "backward"])
@every_accumulation
@every_method
def test_an_exception_leaves_the_weights(spec: Spec, accumulation: int, place: str, train: Any) -> None:
    """At call n of the second step, for n over the first, the last and some in between."""
    items = classification(8 * accumulation * 3, torch.float32)
    arguments = spec.arguments() | BASES[1].arguments() | {"gradient_accumulation_steps": accumulation}
    if spec.method == "xsam":
        arguments |= {"xsam_refresh": 1, "xsam_search": "grid"}
    total = calls_in_a_step(spec, place, accumulation)
    some = range(1, total + 1) if total <= 4 else {1, accumulation, accumulation + 1, total // 2, total - 1, total}
    for number in sorted(some):
        error = (RuntimeError, KeyboardInterrupt)[number % 2]("boom")
        model = failing(total + number, place, error)
        run = train(model, items, **arguments, max_steps=3, catch=type(error))
        assert "boom" in str(run.error)
        assert len(run.weights) == 1, "the fault was in the second step"
        assert torch.equal(flat(run.model), run.weights[0]), number


@every_method
def test_training_can_go_on_after_an_exception(spec: Spec, train: Any) -> None:
    """What auto_find_batch_size does: train() again on the same trainer, with nothing left of the failed step."""
    items = classification(48, torch.float32)
    arguments = spec.arguments() | BASES[1].arguments() | {"num_train_epochs": 1}
    run = train(failing(2, "forward", RuntimeError("boom")), items, **arguments, catch=RuntimeError)
    assert "boom" in str(run.error)
    assert not run.weights
    assert torch.equal(flat(run.model), flat(Net()))
    run.trainer.train()
    assert torch.equal(run.weights[-1], train(Net(), items, **arguments).weights[-1])


class Interrupt(TrainerCallback):
    """Between the last backward and the optimizer's step."""

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@every_method
def test_the_optimizer_is_an_ordinary_one_afterwards(spec: Spec, train: Any) -> None:
    """An interrupt before the step: nothing of ours is waiting in the optimizer for a step of the user's."""
    items = classification(8, torch.float32)
    arguments = spec.arguments() | BASES[0].arguments()
    run = train(Net(), items, **arguments, max_steps=1, callbacks=[Interrupt()], catch=KeyboardInterrupt)
    for parameter in run.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.trainer.optimizer.step()
    start = flat(Net())
    assert torch.equal(flat(run.model), start.add(torch.ones_like(start), alpha=-BASES[0].lr))


@every_method
def test_out_of_memory_finds_a_batch_size(spec: Spec, train: Any) -> None:
    """An out-of-memory error in the replay: the Trainer halves the batch and starts again from clean weights."""
    items = classification(48, torch.float32)
    arguments = spec.arguments() | BASES[1].arguments() | {"num_train_epochs": 1}
    model = failing(2, "forward", torch.OutOfMemoryError("CUDA out of memory. boom"))
    run = train(model, items, **arguments, auto_find_batch_size=True)
    size = run.trainer._train_batch_size
    assert size < 8
    expected = train(Net(), items, **arguments, per_device_train_batch_size=size)
    assert torch.equal(run.weights[-1], expected.weights[-1])


@every_method
def test_save_in_a_signal_handler(spec: Spec, train: Any, tmp_path: Any) -> None:
    """Whoever asks for a model to be saved in the middle of a pass gets the weights the step started from, and the
    step goes on as if nothing had happened."""
    from safetensors.torch import load_file

    items, holder = classification(24, torch.float32), {}

    class Starter(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            holder["start"] = flat(kwargs["model"])

    def save(n: int) -> None:
        if n == 2:
            holder["trainer"].save_model(str(tmp_path / "rescued"))

    run = None

    class Holding:
        """Makes the trainer reachable from inside its model's forward."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            holder["trainer"] = self

    holding = type("HoldingTrainer", (Holding, hf_sharpness.Trainer), {})
    arguments = spec.arguments() | BASES[1].arguments() | {"num_train_epochs": 1}
    run = train(Net(lambda: Saboteur(save)), items, trainer_class=holding, callbacks=[Starter()], **arguments)
    weights = load_file(tmp_path / "rescued" / "model.safetensors")
    names = [name for name, _ in run.model.named_parameters()]
    assert torch.equal(torch.cat([weights[name].flatten() for name in names]), holder["start"])
    assert torch.equal(run.weights[-1], train(Net(), items, **arguments).weights[-1])


def test_a_loss_that_drops_the_gradients_is_named(train: Any) -> None:
    """`zero_grad` in compute_loss takes away what an earlier micro-batch of the step has left."""

    class Dropping(hf_sharpness.Trainer):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            model.zero_grad()
            return super().compute_loss(model, *args, **kwargs)

    model = Net()
    run = train(
        model,
        classification(32, torch.float32),
        trainer_class=Dropping,
        catch=RuntimeError,
        optim="wsam",
        sam_rho=0.1,
        max_steps=2,
        gradient_accumulation_steps=2,
    )
    assert "compute_loss" in str(run.error)
    assert "zero_grad" in str(run.error)
    assert torch.equal(flat(run.model), flat(model))
