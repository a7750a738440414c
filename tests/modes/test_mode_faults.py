"""Faults everywhere: exceptions, interrupts, SIGTERM, SIGKILL and NaN in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import transformers
from launch import environment, run_bounded
from models import Net, Record, Saboteur, classification, steps_of
from reference import Spec, flat
from safetensors.torch import load_file
from specs_of_modes import BASE, DEEP, METHODS, scoped, without_decay
from torch import Tensor, nn

import hf_sharpness
from hf_sharpness.engine.for_a_while import modes_on

ALL = [*METHODS, *DEEP, *[scoped(spec, "micro_batch") for spec in METHODS if spec.method != "xsam"]]
by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
accumulations = pytest.mark.parametrize("accumulation", [1, 3])
PACKAGE = str(Path(hf_sharpness.__file__).parent)
ITEMS = classification(96, torch.float32)


def few_probes(spec: Spec) -> Spec:
    """XSAM with a grid of three points: the walks below come past every kind of point, not 21 times past one."""
    settings = {"alpha_points": 3, "refresh": 1} if spec.method == "xsam" else {}
    return Spec(spec.name, spec.method, spec.settings | settings)


READING = f"{PACKAGE}/engine/state/"
"""Code that looks for state by the thousand lines, and changes nothing while it does."""


def is_reading(frame: FrameType | None, depth: int = 6) -> bool:
    """Whether the frame, or one of its callers, is of that code."""
    return (
        frame is not None
        and depth > 0
        and (frame.f_code.co_filename.startswith(READING) or is_reading(frame.f_back, depth - 1))
    )


class Tripwire:
    """Raises once, when the n-th line of this package is about to run (0: never); counts the lines.

    Lines that only read, over and over, count once; some of them are made to tolerate errors.
    """

    def __init__(self, number: int = 0, error: type[BaseException] = KeyboardInterrupt):
        self.number, self.error, self.lines = number, error, 0
        self.where = ""
        self.read: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> Tripwire:
        self.before = sys.gettrace()
        sys.settrace(self.enter_frame)
        return self

    def __exit__(self, *args: Any) -> None:
        sys.settrace(self.before)

    def enter_frame(self, frame: FrameType, event: str, arg: Any) -> Callable | None:
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
        place = frame.f_code.co_filename, frame.f_lineno
        self.read[place] += event == "line" and place[0].startswith(READING)
        if event == "line" and self.read[place] <= 1:
            self.lines += 1
            if self.lines == self.number:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise (KeyboardInterrupt if is_reading(frame) else self.error)("boom")
        return self.line


class Loop:
    """A plain loop of which one step has been made."""

    def __init__(self, spec: Spec, accumulation: int):
        self.model = Net(lambda: nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(8)))
        self.optimizer = BASE.torch(self.model.parameters())
        self.method = few_probes(spec).ours(self.model, self.optimizer)
        self.steps = steps_of(ITEMS, 8, accumulation)
        torch.manual_seed(1)
        self.backward(0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self, number: int) -> None:
        def closure(batch: dict[str, Tensor], parts: int) -> Tensor:
            loss = self.model(**batch)["loss"] / parts
            loss.backward()
            return loss.detach()

        step = self.steps[number]
        self.method.backward([lambda b=batch: closure(b, len(step)) for batch in step])


@pytest.mark.parametrize(
    ("spec", "accumulation"),
    [
        pytest.param(
            spec,
            accumulation,
            marks=() if (spec.method == "sam" and spec in METHODS and accumulation == 1) else pytest.mark.slow,
        )
        for spec in ALL
        for accumulation in (1, 3)
    ],
    ids=str,
)
@pytest.mark.shows(
    mode="Exception or interrupt at any line of any pass",
    brief="Exception or Ctrl-C anywhere in a step",
    result="clean",
)
def test_an_interrupt_at_any_line(spec: Spec, accumulation: int) -> None:
    """Every line of this package that a step comes past raises once: the weights are those before the step, bit for
    bit, nothing is held, and the next step goes through."""
    loop = Loop(spec, accumulation)
    with Tripwire() as wire:
        loop.backward(1)
    total = wire.lines
    assert total > 100
    for number in range(1, total + 1):
        loop.optimizer.zero_grad()
        before = flat(loop.model)
        error = (KeyboardInterrupt, RuntimeError)[number % 2]
        with Tripwire(number, error) as wire:
            try:
                loop.backward(1)
            except (error, KeyboardInterrupt) as raised:
                assert "boom" in str(raised)  # noqa: PT017
            else:
                assert wire.lines < number, "fewer lines came by, as some is known from the step before"
        assert torch.equal(flat(loop.model), before), wire.where
        assert not modes_on(), wire.where
    loop.optimizer.zero_grad()
    loop.backward(1)
    loop.optimizer.step()
    assert flat(loop.model).isfinite().all()


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


def calls(spec: Spec, accumulation: int) -> int:
    """Forward passes of one step."""
    return accumulation * (1 + spec.settings.get("steps", 1) + (3 if spec.method == "xsam" else 0))


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


def saved_weights(folder: Path) -> Tensor:
    state = load_file(folder / "model.safetensors")
    return torch.cat([state[name].reshape(-1) for name, _ in Net().named_parameters()])


# Saving in the middle of a pass.


class Saving:
    """At chosen forward passes, after the last layer, in the middle of a step: saves, and keeps where."""

    def __init__(self, at: set[int], folder: Path, how: str):
        self.at, self.folder, self.how = at, folder, how
        self.record, self.trainer = Record(), None

    @property
    def forwards(self) -> int:
        return self.record.forwards

    @property
    def folders(self) -> list[Path]:
        return self.record.items

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if not module.training:
            return
        self.record.forwards += 1
        if self.forwards in self.at:
            if self.how == "save_model":
                self.folders.append(self.folder / str(self.forwards))
                self.trainer.save_model(str(self.folders[-1]))
            else:
                step = self.trainer.state.global_step
                self.folders.append(Path(self.trainer.args.output_dir) / f"checkpoint-{step}")
                self.trainer._save_checkpoint(self.trainer.model, None)


def run_saving(train: Any, spec: Spec, saving: Saving, **options: Any) -> Any:
    """Two steps of two micro-batches; `saving` hangs on the last layer."""

    class Hooked(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            saving.trainer = self
            self.model.last.register_forward_hook(saving)

    arguments = few_probes(spec).arguments() | {"gradient_accumulation_steps": 2, "max_steps": 2}
    return train(Net(), ITEMS[:32], trainer_class=Hooked, **arguments, **options)


@pytest.mark.parametrize("how", ["save_model", "checkpoint"])
@pytest.mark.parametrize("spec", [*METHODS, *DEEP], ids=str)
@pytest.mark.shows(
    mode="Saving in the middle of any pass (a signal handler), then exit",
    brief="SIGTERM with save in the middle of a pass",
    result="clean",
)
def test_a_save_in_the_middle_of_a_pass(spec: Spec, how: str, train: Any, tmp_path: Path) -> None:
    """SIGTERM at every forward pass of the second step; the handler saves and exits: the weights are clean."""
    per_step = calls(spec, 2)
    smooth = run_saving(train, spec, Saving(set(), tmp_path, how))
    for number in range(per_step + 1, 2 * per_step + 1):
        saving = Saving({number}, tmp_path / f"s{number}", how)

        def handler(signum: int, frame: Any, saving: Saving = saving) -> None:
            saving(saving.trainer.model.last)
            raise SystemExit(143)

        class Terminated(Saving):
            """Sends a real SIGTERM to this process where the other saves."""

            def __call__(self, module: nn.Module, *args: Any, saving: Saving = saving) -> None:
                saving.trainer = self.trainer
                if module.training:
                    self.record.forwards += 1
                    if self.forwards in self.at:
                        saving.record.forwards = self.forwards - 1
                        os.kill(os.getpid(), signal.SIGTERM)

        earlier = signal.signal(signal.SIGTERM, handler)
        try:
            run = run_saving(train, spec, Terminated({number}, tmp_path, how), catch=SystemExit)
        finally:
            signal.signal(signal.SIGTERM, earlier)
        assert isinstance(run.error, SystemExit)
        assert torch.equal(saved_weights(saving.folders[0]), smooth.weights[0]), number
        assert torch.equal(flat(run.model), smooth.weights[0])


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.shows(mode="Saving in the middle of any pass, then going on", result="exact")
def test_going_on_after_a_save_in_the_middle(spec: Spec, train: Any, tmp_path: Path) -> None:
    """The run is bit for bit the one without the save."""
    per_step = calls(spec, 2)
    smooth = run_saving(train, spec, Saving(set(), tmp_path, "save_model"))
    for number in range(per_step + 1, 2 * per_step + 1):
        saving = Saving({number}, tmp_path / str(number), "save_model")
        run = run_saving(train, spec, saving)
        assert torch.equal(saved_weights(saving.folders[0]), smooth.weights[0]), number
        assert torch.equal(run.weights[-1], smooth.weights[-1]), number


@by_method
@pytest.mark.shows(mode="SIGTERM with transformers' own just-in-time checkpoint", result="exact")
def test_just_in_time_checkpoint(spec: Spec, train: Any, tmp_path: Path) -> None:
    """`enable_jit_checkpoint`: a SIGTERM in the replay; the run that resumes is bit for bit the uninterrupted one."""
    arguments = spec.arguments() | {"gradient_accumulation_steps": 2, "num_train_epochs": 1}
    smooth = train(Net(), ITEMS, **arguments)

    class Terminated(hf_sharpness.Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            (manager,) = [cb.jit_manager for cb in self.callback_handler.callbacks if hasattr(cb, "jit_manager")]
            if self.state.global_step == 3 and not manager.is_checkpoint_requested:
                manager.kill_wait = 0
                os.kill(os.getpid(), signal.SIGTERM)
                while not manager.is_checkpoint_requested:
                    pass
            return super().training_step(*args, **kwargs)

    earlier = signal.getsignal(signal.SIGTERM)
    try:
        stopped = train(Net(), ITEMS, **arguments, trainer_class=Terminated, enable_jit_checkpoint=True)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert len(stopped.weights) < len(smooth.weights)
    folder = tmp_path / "run" / "checkpoint-3"
    assert torch.equal(saved_weights(folder), smooth.weights[2])
    resumed = train(Net(), ITEMS, **arguments, resume=folder)
    assert torch.equal(resumed.weights[-1], smooth.weights[-1])


# SIGKILL.


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of every method died, each by a SIGKILL in the middle of a replay (see killed.py)."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed.py")
    code = run_bounded([sys.executable, str(script), str(folder)], 120, folder / "log", env=environment())
    assert code == 0, (folder / "log").read_text()[-3000:]
    return folder


@by_method
@pytest.mark.shows(
    mode="SIGKILL in a replay, then resume from the last checkpoint", brief="SIGKILL, then resume", result="exact"
)
def test_killed_and_resumed(spec: Spec, killed: Path, train: Any) -> None:
    """With dropout, accumulation and a schedule; AdamW."""
    from killed import ARGUMENTS, KILLED_IN_STEP, network

    log = (killed / "log").read_text()
    assert f"{spec} died of signal 9" in log
    assert sorted(p.name for p in (killed / spec.name).glob("checkpoint-*"))[-1] == f"checkpoint-{KILLED_IN_STEP - 1}"
    arguments = ARGUMENTS | spec.arguments() | {"save_strategy": "no"}
    smooth = train(network(), ITEMS, **arguments, shuffle=True)
    last = transformers.trainer_utils.get_last_checkpoint(str(killed / spec.name))
    resumed = train(network(), ITEMS, **arguments, shuffle=True, resume=last)
    assert torch.equal(resumed.weights[-1], smooth.weights[-1])
    assert smooth.series("loss")[-1] == resumed.series("loss")[-1]


# Not a number.


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


def test_the_tripwire_reaches_every_layer() -> None:
    """Guards the walk: a step of every method passes lines of each module that moves weights."""
    seen = set()

    class Noting(Tripwire):
        def line(self, frame: FrameType, event: str, arg: Any) -> Callable:
            seen.add(Path(frame.f_code.co_filename).name)
            return self.line

    for spec in METHODS:
        loop = Loop(spec, 1)
        with Noting():
            loop.backward(1)
    assert {"engine.py", "passes.py", "lengths.py", "state.py", "sam.py", "wsam.py", "xsam.py"} <= seen
