"""What a micro-batch's first pass in the Trainer was made from, for its replays to be made from the same."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..engine import for_a_while
from ..engine.state import Moment, Root, State, copied, is_iterator, visit_of
from .accumulation import AccelerateState

Prepare = Callable[[Any], Any]

NO_STATE_OF_A_PASS = frozenset(
    {"train_dataset", "eval_dataset", "args", "state", "control", "accelerator", "callback_handler", "current_flos"}
    | {"optimizer", "_prepare_inputs", "training_step"}
    | {"_sharpness_engine", "_sharpness_steps", "_sharpness_averages"}
)
"""Attributes of a Trainer that passes leave alone, or that are to keep what a further pass makes of them."""


def state_of(trainer: Any) -> list[Root]:
    """Where the engine looks for state of a Trainer's passes: its attributes, its loss function among them.

    Also its arguments, which a loss may count in (``self.args.temperature *= 0.99``), and a dataset of the user's own
    class, which a loss may draw from; and attention functions (transformers' ``AttentionInterface``).
    """
    # A library's own Trainer is not looked into, as no state is in its class; the user's loss function is set on it.
    looked_into = trainer if visit_of(type(trainer)) else vars(trainer)
    roots = [Root("trainer", looked_into, NO_STATE_OF_A_PASS), Root("trainer.args", vars(trainer.args))]
    # Lists are data. Callbacks are no root: they change between passes as well, in handlers of signals and in threads.
    if isinstance(trainer.train_dataset, Dataset) or visit_of(type(trainer.train_dataset)) == "instance":
        roots.append(Root("trainer.train_dataset", trainer.train_dataset))
    own = vars(trainer.state)  # a loss may count there too (self.state.calls += 1)
    kept_by_trainer = {field.name for field in dataclasses.fields(trainer.state)} - {"log_history"}
    roots.append(Root("trainer.state", own, frozenset(kept_by_trainer)))
    # A model calls them by the name that its configuration has.
    return [*roots, *(Root(f"attention {name}", function) for name, function in ALL_ATTENTION_FUNCTIONS.items())]


class FirstPass:
    """Inputs of a micro-batch's first pass, and what its replays begin with besides the engine's state.

    A Trainer may do more in ``_prepare_inputs`` than move tensors: TRL's GRPO and RLOO generate completions there and
    hand out slices of a buffer. So a subclass's own is called in the first pass alone, and the replays get what it
    returned and go on from the state that it left. Only where it returned what depends on weights, or can be read just
    once, is it called again.

    Every pass gets copies, so that it may change its inputs in place.

    Args:
        trainer: the Trainer, just before the first pass.
        inputs: the micro-batch, as ``training_step`` got it.
        stock_prepare: transformers' own ``_prepare_inputs``, which may be called again and again.
        state: the engine's, of the step under way.
        whole: a pass is a subclass's whole step, which may change its inputs before it prepares them.
    """

    def __init__(self, trainer: Any, inputs: Any, stock_prepare: Prepare, state: State, whole: bool = False) -> None:
        self.trainer = trainer
        self.state = state
        self.inputs = inputs
        self.whole = whole
        self.accelerate = AccelerateState(trainer.accelerator)
        self.prepare: Any = trainer._prepare_inputs
        if getattr(self.prepare, "__func__", None) is stock_prepare:
            self.prepare = None
        self.prepared: list[_Prepared | _Again] = []
        state.look_into(_objects_in(inputs))

    def inputs_of_a_pass(self) -> Any:
        """The micro-batch for one ``training_step``."""
        if self.whole:
            return copied(self.inputs)
        if self.prepare is not None:
            return copy.copy(self.inputs)  # its tensors are copied once they are prepared
        return copied(self.inputs, self.trainer.args.device)  # what is elsewhere is copied when it is moved

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Around the first pass."""

        def prepare(inputs: Any) -> Any:
            again = _Again(copied(inputs))  # kept only if needed
            result = self.prepare(inputs)
            if _find(result, lambda value: is_iterator(value) or _requires_grad(value)) is not None:
                self.prepared.append(again)
                return result
            self.state.look_into(_objects_in(result))
            self.prepared.append(_Prepared(result, self.state.note()))
            return copied(result)

        with self._preparing_by(prepare):
            yield

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Around a replay.

        Raises:
            ValueError: the inputs do not allow a second pass.
        """
        if self.prepare is None:
            self.check_repeatable()
        left = iter(self.prepared)

        def prepare(inputs: Any) -> Any:
            known = next(left, None)
            if known is None:
                return self.prepare(inputs)
            if isinstance(known, _Again):
                _check_repeatable(known.inputs)
                return self.prepare(copied(known.inputs))
            known.left.restore()
            return copied(known.result)

        accelerate = AccelerateState(self.trainer.accelerator)
        self.accelerate.restore()
        try:
            with self._preparing_by(prepare):
                yield
        finally:
            accelerate.restore()

    def check_repeatable(self) -> None:
        """Raise a ValueError if the inputs do not allow a second pass."""
        _check_repeatable(self.inputs)

    @contextlib.contextmanager
    def _preparing_by(self, prepare: Prepare) -> Iterator[None]:
        if self.prepare is None:
            yield
            return
        # On the instance: a subclass's method would hide one of a class below it.
        with for_a_while.has(self.trainer, "_prepare_inputs", prepare):
            yield


@dataclasses.dataclass
class _Prepared:
    """What a subclass's ``_prepare_inputs`` returned in the first pass, and the state it left."""

    result: Any
    left: Moment


@dataclasses.dataclass
class _Again:
    """What ``_prepare_inputs`` was given, where a replay must call it again."""

    inputs: Any


def _objects_in(data: Any) -> list[Any]:
    """What inputs consist of besides tensors and containers: graphs, images, a library's own kind of batch.

    And tensors in which passes gather gradients (``inputs["pixel_values"].requires_grad_()``).
    """
    if isinstance(data, Mapping):
        return [found for value in data.values() for found in _objects_in(value)]
    if isinstance(data, (list, tuple)):
        return [found for value in data for found in _objects_in(value)]
    if isinstance(data, Tensor):
        return [data] if data.requires_grad and data.is_leaf else []
    known = (str, bytes, int, float, bool, type(None))
    return [] if isinstance(data, known) or is_iterator(data) else [data]


def _find(data: Any, wanted: Callable[[Any], bool]) -> Any:
    """The first such object in nested mappings, lists and tuples, or None."""
    if wanted(data):
        return data
    inner = data.values() if isinstance(data, Mapping) else data if isinstance(data, (list, tuple)) else ()
    return next((found for found in (_find(value, wanted) for value in inner) if found is not None), None)


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _check_repeatable(inputs: Any) -> None:
    once = _find(inputs, is_iterator)
    if once is not None:
        raise ValueError(
            f"a micro-batch holds a {type(once).__name__}, which can be read only once, but a sharpness-aware step "
            "goes through every micro-batch again: have the data collator make a list or a tensor of it"
        )
    if _find(inputs, lambda value: _requires_grad(value) and value.grad_fn is not None) is not None:
        raise ValueError(
            "a micro-batch holds a tensor that was computed with autograd before the training step; a sharpness-aware "
            "step cannot compute it again for its further passes: compute it in compute_loss or _prepare_inputs"
        )
