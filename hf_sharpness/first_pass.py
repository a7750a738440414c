"""What a micro-batch's first pass in the Trainer was made from, for its replays to be made from the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from .counters import counters_kept
from .snapshots import RandomState, accelerators_of

Prepare = Callable[[Any], Any]


class FirstPass:
    """Inputs and numbers of a micro-batch's first pass.

    A Trainer may do more in ``_prepare_inputs`` than move tensors: TRL's GRPO and RLOO generate completions there and
    hand out slices of a buffer. So a subclass's own is called in the first pass alone, and the replays get what it
    returned, go on from the random state it left, and see the numbers that the Trainer held then.

    Args:
        trainer: the Trainer, just before the first pass.
        stock_prepare: transformers' own ``_prepare_inputs``, which may be called again and again.
    """

    def __init__(self, trainer: Any, stock_prepare: Prepare) -> None:
        self.trainer = trainer
        self.numbers = _Numbers(trainer)
        self.prepare: Prepare | None = trainer._prepare_inputs
        if getattr(self.prepare, "__func__", None) is stock_prepare:
            self.prepare = None
        self.prepared: list[tuple[Any, RandomState, _Numbers]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Around the first pass."""

        def prepare(inputs: Any) -> Any:
            result = self.prepare(inputs)
            random_state = RandomState(accelerators_of(self.trainer.model.parameters()))
            # A shallow copy: compute_loss may take the labels out of the mapping it is given.
            self.prepared.append((copy.copy(result), random_state, _Numbers(self.trainer)))
            return result

        with self._preparing_by(prepare):
            yield

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Around a replay; afterwards the Trainer's counters are what they were before it."""
        left = iter(self.prepared)

        def prepare(inputs: Any) -> Any:
            known = next(left, None)
            if known is None:
                return self.prepare(inputs)
            result, random_state, numbers = known
            random_state.restore()
            numbers.restore(self.trainer)
            return copy.copy(result)

        with counters_kept(self.trainer):
            self.numbers.restore(self.trainer)
            with self._preparing_by(prepare):
                yield

    @contextlib.contextmanager
    def _preparing_by(self, prepare: Prepare) -> Iterator[None]:
        if self.prepare is None:
            yield
            return
        own = vars(self.trainer)  # on the instance: a subclass's method would hide one of a class below it
        before = own.get("_prepare_inputs")
        own["_prepare_inputs"] = prepare
        try:
            yield
        finally:
            if before is None:
                del own["_prepare_inputs"]
            else:
                own["_prepare_inputs"] = before


class _Numbers:
    """The numbers that an object holds. Flags and other values are left alone: they guard what is to happen once."""

    def __init__(self, owner: object) -> None:
        self.names = frozenset(vars(owner))
        self.values = {name: value for name, value in vars(owner).items() if type(value) in (int, float)}

    def restore(self, owner: object) -> None:
        own = vars(owner)
        for name in [n for n, value in own.items() if type(value) in (int, float) and n not in self.names]:
            del own[name]  # the class's default is visible again
        own.update(self.values)
