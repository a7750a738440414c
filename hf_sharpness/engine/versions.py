"""What torch's counters say about a gradient that lies on an accelerator, where reading it would wait for the device.

Following an edit element by element moves some fifty times the gradient's bytes. Where nothing was written, or only by
a call that multiplies all of it by one number, two norms are enough. torch counts what is written in place; not
counted is what goes through ``.data``. So the counters are believed once they have been compared with the values.
"""

from __future__ import annotations

import enum
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .. import vectors
from .habits import is_power_of_ten


class Edit(enum.Enum):
    """What happened to a gradient, as far as counters can tell."""

    NONE = enum.auto()
    FACTOR = enum.auto()  # all of it was multiplied by one number
    UNKNOWN = enum.auto()


class Versions:
    """The counters of some gradients.

    Args:
        params: the parameters that have them.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.edit = Edit.NONE
        self._note(params)

    def _note(self, params: list[nn.Parameter]) -> None:
        # The tensors are kept, so that no other gets their memory.
        gradients = vectors.gradients(params)
        self.noted = {p: (g, g.data_ptr(), g._version) for p, g in zip(params, gradients, strict=True)}

    def edit_of(self, params: list[nn.Parameter]) -> Edit:
        """What happened to the gradients of some of the parameters, which all have one."""
        for parameter, gradient in zip(params, vectors.gradients(params), strict=True):
            _, place, version = self.noted[parameter]
            if (gradient.data_ptr(), gradient._version) != (place, version):
                return Edit.UNKNOWN
        return self.edit

    def edit_is_known(self) -> bool:
        """Whether all gradients are there and the counters account for what happened to them."""
        params = list(self.noted)
        return all(p.grad is not None for p in params) and self.edit_of(params) is not Edit.UNKNOWN

    def note_factor(self) -> None:
        """All that was written since the last look has multiplied everything by one number."""
        params = [p for p in self.noted if p.grad is not None]
        if len(params) == len(self.noted):
            self.edit = Edit.FACTOR
            self._note(params)


class Trust:
    """Whether the counters are believed: once they were right in a step that looked at the values too.

    Every step looks until one has, then those that are measured, and steps 10, 100 and so on.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.is_given = False
        self.is_lost = False
        self.answers: list[LateFlag] = []

    def in_a_step(self) -> bool:
        """Whether the step that begins relies on the counters alone."""
        self.steps += 1
        return self.is_given and not is_power_of_ten(self.steps)

    def note(self, contradicted: Tensor) -> None:
        """A step has looked: whether the values contradict the counters, 0-dim, on the device."""
        self.answers.append(LateFlag(contradicted))

    def update(self) -> None:
        """Take notice of the answers that have arrived; nothing waits for the others."""
        while self.answers and self.answers[0].has_arrived and not self.is_lost:
            if not self.answers.pop(0).is_set:
                self.is_given = True
                continue
            if self.is_given:
                warnings.warn(
                    "the gradient was changed in a way that torch does not count (through `.data`, say) for the first "
                    "time after a number of steps; the term of mode='decoupled' (or 'preconditioned') did not follow "
                    "that until now, and does from now on. Change p.grad itself instead",
                    stacklevel=2,
                )
            self.is_given, self.is_lost = False, True


class LateFlag:
    """A flag on the device, read without waiting for it: not set until its value has arrived on the host."""

    def __init__(self, flag: Tensor) -> None:
        self.arrived: Any = None
        self.value = flag
        if flag.device.type != "cpu":
            device = torch.get_device_module(flag.device)
            pinned = torch.empty((), dtype=flag.dtype, device="cpu", pin_memory=True)
            self.value = pinned.copy_(flag, non_blocking=True)
            self.arrived = device.Event()
            self.arrived.record()

    @property
    def has_arrived(self) -> bool:
        """Whether the value is on the host."""
        return self.arrived is None or self.arrived.query()

    @property
    def is_set(self) -> bool:
        """Whether the flag is known to be true."""
        return self.has_arrived and bool(self.value)
