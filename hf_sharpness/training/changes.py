"""Arguments that a callback changes while the training runs, such as a schedule for ``sam_rho``."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from ..arguments import SharpnessArguments
from ..engine import Engine
from ..engine.optimizers import kind_of
from ..methods import Method, Options, hyperparameters
from ..methods.options import PREFIX


class LiveArguments:
    """Hands changed hyper-parameters on to the method before each step, and says which ones cannot be.

    Args:
        args: the training arguments.
        engine: the engine whose method was made from them.
    """

    def __init__(self, args: Any, engine: Engine) -> None:
        self.args = args
        self.engine = engine
        self.name = engine.method.name
        self.given = args.method()
        self.values = self._values()
        options = [option.argument for option in hyperparameters(Options, PREFIX).values()]
        self.fixed = ("base_optim", "sharpness_config", *options)

    def before_step(self, is_main: bool) -> None:
        """Take up what has changed.

        Args:
            is_main: whether this process speaks for all.

        Raises:
            ValueError: a new value is not valid.
        """
        values = self._values()
        changed = [name for name, value in values.items() if value != self.values[name]]
        if not changed:
            return
        if self.args.optim == self.name:
            self.args.check_sharpness()  # a number may come as text
            if self._taken_up(self.args.method()):
                changed = [name for name in changed if name in self.fixed]
        self.values = self._values()
        if changed and is_main:
            warnings.warn(
                f"{', '.join(changed)} changed while the training runs, which has no effect before the next train()",
                stacklevel=2,
            )

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self.args, field.name) for field in dataclasses.fields(SharpnessArguments)}

    def _taken_up(self, given: Method) -> bool:
        """Give the method at work the hyper-parameters of another; whether that has an effect."""
        new, now = given.resolved(kind_of(self.engine.optimizer)), self.engine.method
        before, self.given = self.given, given
        built_for = (now.adds_after_step, now.preconditions_term)
        if (new.adds_after_step, new.preconditions_term) != built_for:  # the engine is
            return False
        for field in dataclasses.fields(new):
            setattr(now, field.name, getattr(new, field.name))
        return given != before
