"""On an accelerator: whether a step may take it that the gradient was multiplied by one number, if changed at all.

Reading values would wait for the device there, so that a step cannot choose by what it sees, and going through every
element for all that an edit may be moves fifty times the gradient's bytes. Nearly all trainings clip by norm, unscale,
or do nothing. A step that relies on that checks it on the device, and leaves its term out where it is not so.
"""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import torch
from torch import Tensor

LEFT_OUT = (
    "the gradient was changed between the backward pass and the optimizer's step by more than one factor (a mask, "
    "clipping by value) for the first time after some steps: what the method adds after the step (WSAM does, unless "
    "its mode is coupled) was left out there, in two steps at most, and follows such changes from now on"
)


class OneFactor:
    """Remembers what the steps have found. Which steps rely on it does not depend on how fast the device is.

    Attributes:
        was_not_one_factor: it was not so once: no step relies on it any more, and none needs to look.
    """

    def __init__(self) -> None:
        self.found: deque[tuple[LateFlag, bool]] = deque()
        self.was_one_factor = False
        self.was_not_one_factor = False

    def is_expected(self) -> bool:
        """Whether the coming step relies on it: it was so in all but the last, whose answer may be under way."""
        while len(self.found) > 1:
            not_one_factor, relied = self.found.popleft()
            if not_one_factor.wait():
                self.was_not_one_factor = True
                if relied:
                    warnings.warn(LEFT_OUT, stacklevel=2)
            else:
                self.was_one_factor = True
        return self.was_one_factor and not self.was_not_one_factor

    def end(self) -> None:
        """No step follows: tell of the last ones what is known of them, without waiting for it."""
        if any(relied and not_one_factor.is_set for not_one_factor, relied in self.found):
            warnings.warn(LEFT_OUT, stacklevel=2)
        self.found.clear()

    def note(self, not_one_factor: Tensor, relied: bool) -> None:
        """A step has looked.

        Args:
            not_one_factor: whether it was not so, 0-dim, on the device.
            relied: whether the step's term was left out then.
        """
        self.found.append((LateFlag(not_one_factor), relied))


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
    def is_set(self) -> bool:
        """Whether the flag is known to be true."""
        return (self.arrived is None or self.arrived.query()) and bool(self.value)

    def wait(self) -> bool:
        """The flag, once it has arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.value)
