"""Models with state in random generators, numbers, containers and objects, read and changed by every forward pass."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .state_base import Stateful

# Random generators.


class NumpyGenerator(Stateful):
    def prepare(self) -> None:
        self.rng = np.random.default_rng(0)

    def factor(self, h: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.uniform(0.5, 1.5, tuple(h.shape)))

    def state(self) -> Any:
        return self.rng.bit_generator.state["state"]


class NumpyRandomState(Stateful):
    def prepare(self) -> None:
        self.rng = np.random.RandomState(0)

    def factor(self, h: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.normal(1.0, 0.2, tuple(h.shape)))

    def state(self) -> Any:
        return self.rng.get_state()[1].tolist(), self.rng.get_state()[2:]


class TorchGenerator(Stateful):
    def prepare(self) -> None:
        self.rng = torch.Generator().manual_seed(0)

    def __deepcopy__(self, memo: Any) -> TorchGenerator:
        twin = TorchGenerator().to(next(self.parameters()).dtype)
        twin.load_state_dict(self.state_dict())
        twin.rng.set_state(self.rng.get_state())
        return twin

    def factor(self, h: Tensor) -> Tensor:
        return torch.rand(h.shape, generator=self.rng, dtype=h.dtype)

    def state(self) -> Any:
        return self.rng.get_state()


class PythonGenerator(Stateful):
    def prepare(self) -> None:
        self.held = {"rngs": [random.Random(0)]}

    def factor(self, h: Tensor) -> float:
        return self.held["rngs"][0].uniform(0.5, 1.5)

    def state(self) -> Any:
        return self.held["rngs"][0].getstate()


# Numbers, containers and objects.


class Annealed(Stateful):
    calls = 0

    def factor(self, h: Tensor) -> float:
        self.calls += 1
        return 1 / self.calls

    def state(self) -> Any:
        return self.calls


@dataclasses.dataclass
class Schedule:
    step: int = 0
    seen: list[float] = dataclasses.field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None


class Slotted:
    __slots__ = ("count", "unset")

    def __init__(self) -> None:
        self.count = 0


class Deep(Stateful):
    """Objects within objects, one of which holds itself."""

    def prepare(self) -> None:
        self.schedule, self.slotted = Schedule(), Slotted()
        self.schedule.owner = [self.schedule, (self.slotted,)]

    def factor(self, h: Tensor) -> float:
        self.schedule.step += 1
        self.slotted.count += 2
        self.schedule.seen.append(float(h.detach().mean()))
        return 1 / (self.schedule.step + self.slotted.count) + len(self.schedule.seen)

    def state(self) -> Any:
        return self.schedule.step, self.slotted.count, self.schedule.seen


class Containers(Stateful):
    def prepare(self) -> None:
        self.history: dict[str, Any] = {"train": defaultdict(list), "order": OrderedDict(a=1)}
        self.recent: deque[int] = deque([1, 2], maxlen=3)
        self.seen: set[int] = set()
        self.kinds: Counter[str] = Counter()

    def factor(self, h: Tensor) -> float:
        number = len(self.history["train"]["loss"])
        self.history["train"]["loss"].append(1.0)
        self.history["order"][f"b{number}"] = number
        self.history["order"].move_to_end("a")
        self.recent.append(number)
        self.seen.add(number)
        self.kinds["x"] += 1
        return 1 / (number + sum(self.recent) + len(self.seen) + self.kinds["x"] + len(self.history["order"]))

    def state(self) -> Any:
        return copy.deepcopy((dict(self.history["train"]), self.history["order"], self.recent, self.seen, self.kinds))


class LongRecord(Stateful):
    """A list too long to be copied at every pass."""

    def prepare(self) -> None:
        self.record = [0.0] * 20_000

    def factor(self, h: Tensor) -> float:
        self.record.append(float(len(self.record)))
        return len(self.record) / 20_000

    def state(self) -> Any:
        return self.record[20_000:]


class Emptied(Stateful):
    """A list that the pass starts anew."""

    def prepare(self) -> None:
        self.features: list[Tensor] = [torch.zeros(1)]

    def factor(self, h: Tensor) -> Tensor:
        earlier = self.features.pop()
        self.features.append(h.detach().mean() + earlier)
        return 1 + earlier.mean()

    def state(self) -> Any:
        return [f.clone() for f in self.features]


class Hooked(Stateful):
    """A list in a hook's closure."""

    def prepare(self) -> None:
        self.outputs: list[Tensor] = []
        self.first.register_forward_hook(lambda module, args, output: self.outputs.append(output))

    def __deepcopy__(self, memo: Any) -> Hooked:
        twin = Hooked().to(next(self.parameters()).dtype)
        twin.load_state_dict(self.state_dict())
        twin.outputs += self.outputs
        return twin

    def factor(self, h: Tensor) -> Any:
        return 1 / len(self.outputs) + self.outputs[-1].square().mean()

    def state(self) -> Any:
        return len(self.outputs)


class LazyCounter(Stateful):
    """Created by the first pass, behind a flag."""

    def prepare(self) -> None:
        self.ready = False

    def factor(self, h: Tensor) -> float:
        if not self.ready:
            self.ready, self.count, self.offset = True, 0, h.detach().mean()
        self.count += 1
        return 1 / self.count + self.offset

    def state(self) -> Any:
        return getattr(self, "count", None), self.ready


class OnlyOnce(Stateful):
    """Behaves otherwise in its first pass."""

    def prepare(self) -> None:
        self.is_first = True

    def factor(self, h: Tensor) -> float:
        factor, self.is_first = (0.5 if self.is_first else 1.0), False
        return factor

    def state(self) -> Any:
        return self.is_first


class NumpyArray(Stateful):
    def prepare(self) -> None:
        self.totals = np.zeros(3)

    def factor(self, h: Tensor) -> float:
        self.totals += 1.0
        return 1 / self.totals[0]

    def state(self) -> Any:
        return self.totals.tolist()


GLOBAL_RNG = np.random.default_rng(5)
GLOBAL = {"calls": 0}


class OfTheScript(Stateful):
    """A script's variables, and a number of the class."""

    passes = 0

    def factor(self, h: Tensor) -> float:
        GLOBAL["calls"] += 1
        OfTheScript.passes += 1
        return helper() / (GLOBAL["calls"] + OfTheScript.passes)

    def state(self) -> Any:
        return GLOBAL["calls"], OfTheScript.passes


def helper() -> float:
    return GLOBAL_RNG.uniform(0.5, 1.5)


def reset_script() -> None:
    """The state that no model owns, as at the beginning."""
    GLOBAL["calls"], OfTheScript.passes = 0, 0
    GLOBAL_RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state
