"""Models whose state is in none of their attributes, or in containers that are neither list, dict nor tensor."""

from __future__ import annotations

from array import array
from collections import ChainMap, UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import held
from .stateful import WIDTH, Stateful


class OfAModule(Stateful):
    """Variables of another file of the user's: through a function of its, and by name."""

    def factor(self, h: Tensor) -> Tensor:
        held.steps += 1
        return held.noise(h) / held.steps

    def state(self) -> Any:
        return held.steps, held.calls


class OfAClass(Stateful):
    """A generator, a list and a tensor among the attributes of a class that nothing is an instance of."""

    def factor(self, h: Tensor) -> Tensor:
        held.Shared.scale = held.Shared.scale * 1.1
        held.Shared.seen.append(float(held.Shared.scale))
        return torch.from_numpy(held.Shared.rng.uniform(0.5, 1.5, tuple(h.shape))) * held.Shared.scale

    def state(self) -> Any:
        return held.Shared.scale.clone(), list(held.Shared.seen)


class Memory(torch.utils.data.Dataset):
    """A dataset from which a loss draws."""

    def __init__(self) -> None:
        self.rng, self.draws = np.random.default_rng(3), 0

    def __len__(self) -> int:
        return 40

    def draw(self) -> float:
        self.draws += 1
        return self.rng.uniform(0.5, 1.5)


class OfADataset(Stateful):
    def prepare(self) -> None:
        self.memory = Memory()

    def factor(self, h: Tensor) -> float:
        return self.memory.draw() / self.memory.draws

    def state(self) -> Any:
        return self.memory.draws


class Sobol(Stateful):
    """torch's generator of quasi-random numbers."""

    def prepare(self) -> None:
        self.engine = torch.quasirandom.SobolEngine(WIDTH, scramble=True, seed=1)

    def factor(self, h: Tensor) -> Tensor:
        return 0.5 + self.engine.draw(1).to(h.dtype)

    def state(self) -> Any:
        return self.engine.num_generated


class RareContainers(Stateful):
    def prepare(self) -> None:
        self.numbers, self.bytes = array("d", [0.0]), bytearray(1)
        self.user, self.chain = UserDict(calls=0), ChainMap({"calls": 0})

    def factor(self, h: Tensor) -> float:
        self.numbers[0] += 1
        self.numbers.append(1.0)
        self.bytes[0] += 1
        self.user["calls"] += 1
        self.chain["calls"] += 1
        return 1 / sum([*self.numbers, *self.bytes, self.user["calls"], self.chain["calls"]])

    def state(self) -> Any:
        return list(self.numbers), bytes(self.bytes), dict(self.user), dict(self.chain)


MODELS: dict[str, Callable[[], Stateful]] = {
    kind.__name__: kind for kind in (OfAModule, OfAClass, OfADataset, Sobol, RareContainers)
}
DEEP_COPIES = [name for name in MODELS if name not in ("OfAModule", "OfAClass")]
