"""What a pass leaves behind besides gradients, random state and buffers, taken and put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..vectors import Vector, clone, copy_, local
from .overlap import lying_on

WATCHED_FROM = 4096
"""Integer and boolean buffers of at least this many elements (attention masks, quantised weights) are not copied."""


class RandomState:
    """The state of every random generator a forward pass may use: Python, NumPy (if loaded), CPU and the given devices.

    Reading and writing it costs no device synchronisation: accelerators keep the generator's state on the host.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.devices = [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]
        self.cpu = torch.get_rng_state()
        self.python = random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy: Any = numpy.random.get_state() if numpy is not None else None

    def restore(self) -> None:
        """Set every generator back to this state."""
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)
        torch.set_rng_state(self.cpu)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def accelerators_of(tensors: Iterable[Tensor]) -> list[torch.device]:
    """The devices other than CPU that hold any of the tensors, each with its index."""
    return sorted({t.device for t in tensors if t.device.type not in ("cpu", "meta")}, key=str)


class BufferState:
    """The buffers of a model: which tensor each name holds, and its values.

    Covers buffers that a forward pass changes in place (BatchNorm) and those that it rebinds to a new tensor. Large
    integer and boolean buffers are watched instead of copied: no known layer moves one, and copying them would double
    the memory of a quantised model.

    Args:
        model: the model.
        others: modules outside it, such as a loss with a BatchNorm.
    """

    def __init__(self, model: nn.Module, others: Iterable[nn.Module] = ()) -> None:
        self.slots: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self.watched: list[tuple[str, Tensor, int]] = []
        self.values: Vector = []
        for module in (model, *others):
            self.include(module)

    def include(self, model: nn.Module) -> None:
        """Take the buffers of a further module too."""
        known = len(self.slots)
        on_weights = lying_on(model.buffers(), local([p for p in model.parameters() if p.requires_grad]))
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is None or buffer.is_meta or id(buffer) in on_weights:
                    continue
                if not (buffer.is_floating_point() or buffer.is_complex()) and buffer.numel() >= WATCHED_FROM:
                    self.watched.append((f"{type(module).__name__}.{name}", buffer, buffer._version))
                else:
                    self.slots.append((module._buffers, name, buffer))
        self.values += clone([buffer.detach() for _, _, buffer in self.slots[known:]])

    def restore(self) -> None:
        """Bind every name to its tensor again and give the tensor its values.

        Raises:
            RuntimeError: a watched buffer has changed.
        """
        copy_([buffer.detach() for _, _, buffer in self.slots], self.values)
        for buffers, name, buffer in self.slots:
            buffers[name] = buffer
        for name, buffer, version in self.watched:
            if buffer._version != version:
                raise RuntimeError(
                    f"the buffer {name} ({buffer.dtype}, {buffer.numel()} elements) changes in training; integer "
                    f"buffers of {WATCHED_FROM} elements or more cannot be put back after a sharpness pass: make it a "
                    "floating-point buffer, or train this model without sharpness-aware steps"
                )
