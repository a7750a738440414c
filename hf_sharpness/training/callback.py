"""The method's state in the Trainer's checkpoints, and the moments of the loop at which the Trainer needs to know."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from ..engine import Engine
from ..methods.options import DECAY
from .watch import Watch


class Listener(Protocol):
    """What the callback tells of the loop's moments: the Trainer's side of it."""

    args: Any
    state: TrainerState
    _sharpness_engine: Engine | None

    uses_sharpness: bool

    def _start_sharpness(self) -> None: ...

    def _sharpness_epoch_begins(self) -> None: ...

    def _sharpness_optimizer_step(self) -> dict[str, Any]: ...


class SharpnessCallback(TrainerCallback, ExportableState):
    """Saves the method's state (XSAM's alpha*) in trainer_state.json, and tells the trainer of epochs and steps.

    Attributes:
        method_state: what ``Method.state_dict`` returned after the last step.
        sharp_steps: how many optimizer steps were sharpness-aware; None where an earlier version began the training.
        decay_begins: the step at which the learning rate begins its last fall, for ``sam_start="decay"``.
    """

    def __init__(self) -> None:
        self.method_state: dict[str, Any] = {}
        self.sharp_steps: int | None = 0
        self.decay_begins: int | None = None
        self._trainer: weakref.ref[Listener] | None = None
        self._watch: Watch | None = None

    def attach(self, trainer: Listener) -> None:
        """Tell this trainer (held weakly) what happens."""
        self._trainer = weakref.ref(trainer)
        _trainers.add(trainer)
        if trainer._sharpness_engine is not None:  # attached in the first step, of whose beginning it has not been told
            self._watch = Watch(trainer, trainer._sharpness_engine)
            self._watch.begin(trainer.state)
            self._watch.before_step(trainer.state)

    @property
    def listener(self) -> Listener | None:
        """The trainer, as long as there is one whose arguments choose a method (a search may change them)."""
        trainer = None if self._trainer is None else self._trainer()
        return trainer if trainer is not None and trainer.uses_sharpness else None

    def state(self) -> dict[str, Any]:
        """For trainer_state.json."""
        names = ("method_state", "sharp_steps", "decay_begins")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        saved: Any = state.stateful_callbacks
        if not state.global_step:  # a new run, or another attempt of auto_find_batch_size: nothing is carried over
            self.method_state, self.sharp_steps, self.decay_begins = {}, 0, None
            saved.pop(type(self).__name__, None)
        elif type(self).__name__ in saved:
            self.sharp_steps = saved[type(self).__name__]["attributes"].get("sharp_steps")
        # A checkpoint of a stock Trainer has no entry for this callback, and saving the next one needs it.
        saved.setdefault(type(self).__name__, self.state())
        trainer = self.listener
        if trainer is not None:
            trainer._start_sharpness()
            assert trainer._sharpness_engine is not None
            phase = trainer._sharpness_engine.phase
            self.decay_begins = phase.first if phase.options.start == DECAY else None
            is_first = self._watch is None  # auto_find_batch_size begins anew
            self._watch = Watch(trainer, trainer._sharpness_engine)
            if is_first:
                self._watch.begin(state)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if (trainer := self.listener) is not None:
            trainer._sharpness_epoch_begins()

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if (trainer := self.listener) is not None:
            self.method_state = trainer._sharpness_optimizer_step()
            if self.sharp_steps is not None and trainer._sharpness_engine is not None:
                self.sharp_steps += "perturbed_loss" in trainer._sharpness_engine.metrics
        if self._watch is not None:
            self._watch.step()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.before_step(state)

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.micro_batch()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.micro_batch()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.log(state, kwargs["logs"])

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.end(state)


_trainers: weakref.WeakSet[Any] = weakref.WeakSet()


def is_at_work(args: Any) -> bool:
    """Whether a training with these arguments is under way whose steps are those of a sharpness-aware method."""
    return any(trainer.args is args and trainer._sharpness_engine is not None for trainer in _trainers)


def at_epoch_boundary(state: TrainerState) -> bool:
    """Whether the next step is the first of an epoch (a resume may begin in the middle of one)."""
    return not (state.epoch or 0.0) % 1
