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
from .state_base import WIDTH, Stateful


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


class Spawning(Stateful):
    """A generator of NumPy's whose children are drawn from."""

    def prepare(self) -> None:
        self.rng = np.random.default_rng(5)

    def factor(self, h: Tensor) -> Tensor:
        (child,) = self.rng.spawn(1)
        return torch.from_numpy(child.uniform(0.5, 1.5, WIDTH))

    def state(self) -> Any:
        return self.rng.bit_generator.seed_seq.state


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


class Scaling:
    """Divides gradients by their average norm."""

    def __init__(self) -> None:
        self.norm = 1.0

    def __call__(self, gradient: Tensor) -> Tensor:
        self.norm = 0.5 * self.norm + float(gradient.norm())
        return gradient / self.norm


class Count:
    """Counts gradients."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, parameter: Tensor) -> None:
        self.calls += 1


class OfAHook(Stateful):
    """What is called with the gradients of parameters: an object, and a function with a generator of its own."""

    def prepare(self) -> None:
        generator, counts = torch.Generator().manual_seed(3), {"calls": 0}

        def noisy(gradient: Tensor) -> Tensor:
            counts["calls"] += 1
            return gradient * torch.rand(gradient.shape, generator=generator, dtype=torch.float64) / counts["calls"]

        self.first.weight.register_hook(noisy)
        self.first.weight.register_post_accumulate_grad_hook(Count())
        self.last.weight.register_hook(Scaling())

    def factor(self, h: Tensor) -> float:
        return 1.0

    def state(self) -> Any:
        (scaling,), (count,) = self.last.weight._backward_hooks, self.first.weight._post_accumulate_grad_hooks
        return self.last.weight._backward_hooks[scaling].norm, self.first.weight._post_accumulate_grad_hooks[
            count
        ].calls


MODELS: dict[str, Callable[[], Stateful]] = {
    kind.__name__: kind for kind in (OfAModule, OfAClass, OfADataset, OfAHook, Sobol, Spawning, RareContainers)
}
DEEP_COPIES = [name for name in MODELS if name not in ("OfAModule", "OfAClass", "OfAHook")]
