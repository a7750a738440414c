"""Clipping by norm: of what happens to a gradient between passes and step, the one thing that a Trainer knows."""

from __future__ import annotations

import contextlib
from typing import Any

from ..engine import Engine
from .mixin_base import MixinBase


class KnownClipping(MixinBase):
    """Says to the engine when it is clipped: on an accelerator a term (decoupled WSAM's) then follows it for less."""

    _engine: Engine | None = None

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        # Private to transformers' Trainer. Where there is none of this name nobody calls it, and all that is lost is
        # that saving: a test of tests/training/test_trainer_cost.py then fails.
        with self._engine.term.multiplied() if self._engine is not None else contextlib.nullcontext():
            return super()._clip_grad_norm(*args, **kwargs)
