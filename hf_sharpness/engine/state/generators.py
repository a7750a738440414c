"""Random generators: the global ones, and those that a model, a loss or a Trainer holds for itself."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RandomState:
    """The state of the global random generators: Python, NumPy (if loaded), CPU and the given devices.

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


class OwnGenerator:
    """The state of one generator object.

    Args:
        generator: the generator; ``is_generator`` holds for its type.
    """

    __slots__ = ("generator", "state")

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        access: Any = _access(type(generator))
        self.state = access[0](generator)

    def restore(self) -> None:
        """Set the generator back to this state."""
        access: Any = _access(type(self.generator))
        access[1](self.generator, self.state)


class Standing:
    """Where random generators stand: the global ones, and others.

    Args:
        devices: as ``RandomState`` takes them.
        generators: as ``OwnGenerator`` takes them.
    """

    def __init__(self, devices: Iterable[torch.device], generators: Iterable[Any]) -> None:
        self.own = [OwnGenerator(generator) for generator in generators]
        self.all = RandomState(devices)

    def restore(self) -> None:
        """Set every generator back to this."""
        for generator in self.own:
            generator.restore()
        self.all.restore()


def is_generator(kind: type) -> bool:
    """Whether objects of a type are random generators whose state can be read and set."""
    return _access(kind) is not None


def _access(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]] | None:
    """How to read and how to set the state of a generator of this type, or None if it is none."""
    if issubclass(kind, torch.Generator):
        return torch.Generator.get_state, torch.Generator.set_state
    if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
        return random.Random.getstate, random.Random.setstate
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if issubclass(kind, numpy.random.Generator):
        return lambda g: _bits(g.bit_generator), lambda g, state: _set_bits(g.bit_generator, state)
    if issubclass(kind, numpy.random.BitGenerator):
        return _bits, _set_bits
    if issubclass(kind, numpy.random.RandomState):
        return lambda g: g.get_state(legacy=False), lambda g, state: g.set_state(state)
    return None


def _bits(generator: Any) -> tuple[Any, dict[str, Any] | None]:
    """The state of one of NumPy's bit generators, and that of what its children come from (``spawn``)."""
    seeds = getattr(generator, "seed_seq", None)
    return generator.state, getattr(seeds, "state", None)


def _set_bits(generator: Any, state: tuple[Any, dict[str, Any] | None]) -> None:
    bits, seeds = state
    if seeds is not None and generator.seed_seq.n_children_spawned != seeds["n_children_spawned"]:
        generator.__setstate__((bits, type(generator.seed_seq)(**seeds)))
    generator.state = bits
