"""Models that hold state in all sorts of places, which each forward pass in train mode reads and changes."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 6


class Stateful(nn.Module):
    """Two layers; a subclass's ``factor`` depends on the state, and ``state`` shows it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.prepare()

    def prepare(self) -> None: ...

    def factor(self, h: Tensor) -> Any:
        return 1.0

    def state(self) -> Any:
        return None

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.first(x))
        logits = self.last(h * self.factor(h) if self.training else h)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


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


# Tensors.


class PlainTensors(Stateful):
    """Attributes that are no buffers: written in place, and rebound."""

    def prepare(self) -> None:
        self.mean, self.queue = torch.zeros(WIDTH), torch.zeros(4, WIDTH)
        self.held = {"count": torch.zeros(())}

    def factor(self, h: Tensor) -> Tensor:
        mean = h.detach().mean(0).float()
        self.mean.mul_(0.9).add_(mean, alpha=0.1)
        self.queue = torch.cat([self.queue[1:], mean[None]])
        self.held["count"] += 1
        return 1 + self.mean + self.queue.mean(0) / self.held["count"]

    def state(self) -> Any:
        return self.mean.clone(), self.queue.clone(), self.held["count"].clone()


class LateBuffer(Stateful):
    """None at first."""

    def prepare(self) -> None:
        self.register_buffer("center", None)

    def factor(self, h: Tensor) -> Tensor:
        mean = h.detach().mean(0)
        self.center = mean if self.center is None else 0.9 * self.center + 0.1 * mean
        return 1 + self.center

    def state(self) -> Any:
        return None if self.center is None else self.center.clone()


class Teacher(Stateful):
    """A momentum teacher of frozen parameters."""

    def prepare(self) -> None:
        self.teacher = copy.deepcopy(self.first).requires_grad_(False)

    def factor(self, h: Tensor) -> Tensor:
        for mine, other in zip(self.teacher.parameters(), self.first.parameters(), strict=True):
            self.move(mine, other)
        return 1 + self.teacher(h)

    def move(self, mine: nn.Parameter, other: nn.Parameter) -> None:
        mine.data.mul_(0.7).add_(other.data, alpha=0.3)

    def state(self) -> Any:
        return [p.clone() for p in self.teacher.parameters()]


class TeacherWithoutData(Teacher):
    @torch.no_grad()
    def move(self, mine: nn.Parameter, other: nn.Parameter) -> None:
        mine.lerp_(other, 0.3)


class TeacherRebound(Teacher):
    def move(self, mine: nn.Parameter, other: nn.Parameter) -> None:
        mine.data = 0.7 * mine.data + 0.3 * other.data


class TeacherReplaced(Teacher):
    def factor(self, h: Tensor) -> Tensor:
        for name, other in list(self.first.named_parameters()):
            value = 0.7 * getattr(self.teacher, name).detach() + 0.3 * other.detach()
            setattr(self.teacher, name, nn.Parameter(value, requires_grad=False))
        return 1 + self.teacher(h)


class TeacherThatRequiresGrad(Teacher):
    """Never handed to an optimizer; used without gradients."""

    def prepare(self) -> None:
        self.teacher = copy.deepcopy(self.first)

    def factor(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            return super().factor(h)


class Queue(Stateful):
    """A buffer too large to be copied unless it is known to change, and one that stays as it is."""

    def prepare(self) -> None:
        self.register_buffer("queue", torch.zeros(5_000, WIDTH))
        self.register_buffer("fixed", torch.arange(40_000).float())
        self.position = 0

    def factor(self, h: Tensor) -> Tensor:
        self.queue[self.position] = h.detach().mean(0).float()
        self.position += 1
        return 1 + self.queue[: self.position].mean(0) + self.fixed[1]

    def state(self) -> Any:
        return self.queue[:20].clone(), self.position


class Expanded(Stateful):
    def prepare(self) -> None:
        self.register_buffer("mask", torch.ones(1, WIDTH).expand(64, WIDTH), persistent=False)

    def factor(self, h: Tensor) -> Tensor:
        return self.mask[: len(h)]


class Inference(Stateful):
    def prepare(self) -> None:
        with torch.inference_mode():
            table = torch.linspace(0.5, 1.5, WIDTH)
        self.register_buffer("table", table, persistent=False)

    def __deepcopy__(self, memo: Any) -> Inference:
        twin = Inference().to(next(self.parameters()).dtype)
        twin.load_state_dict(self.state_dict())
        return twin

    def factor(self, h: Tensor) -> Tensor:
        return self.table.clone()


class Sparse(Stateful):
    """A graph's adjacency, whose weights a pass changes."""

    layout = torch.sparse_coo

    def prepare(self) -> None:
        matrix = torch.eye(WIDTH)
        matrix[0, 1] = 0.5
        self.register_buffer("graph", matrix.to_sparse(layout=self.layout), persistent=False)

    def factor(self, h: Tensor) -> Tensor:
        self.graph.mul_(1.1)
        return 1 + torch.sparse.mm(self.graph, torch.ones(WIDTH, 1, dtype=self.graph.dtype)).squeeze(1)

    def state(self) -> Any:
        return self.graph.to_dense()


class SparseRows(Sparse):
    layout = torch.sparse_csr


class Resized(Stateful):
    """An observer whose buffer the first pass resizes."""

    def prepare(self) -> None:
        self.register_buffer("low", torch.tensor([]), persistent=False)

    def factor(self, h: Tensor) -> Tensor:
        low = h.detach().amin(0).to(self.low.dtype)
        if self.low.numel() == 0:
            self.low.resize_(low.shape)
            self.low.copy_(low)
        else:
            self.low.copy_(torch.minimum(self.low, low) * 1.1)
        return 1 - self.low.clone()

    def state(self) -> Any:
        return self.low.clone()


class Float8(Stateful):
    def prepare(self) -> None:
        self.register_buffer("scale", torch.ones(WIDTH).to(torch.float8_e4m3fn), persistent=False)

    def factor(self, h: Tensor) -> Tensor:
        self.scale.copy_((self.scale.float() * 1.25).to(torch.float8_e4m3fn))
        return self.scale.float()

    def state(self) -> Any:
        return self.scale.float()


class Overlapping(Stateful):
    """Two buffers on one memory."""

    def prepare(self) -> None:
        memory = torch.zeros(2 * WIDTH)
        self.register_buffer("low", memory[:WIDTH], persistent=False)
        self.register_buffer("middle", memory[3 : 3 + WIDTH], persistent=False)

    def factor(self, h: Tensor) -> Tensor:
        self.middle += 1
        return 1 / (1 + self.low)

    def state(self) -> Any:
        return self.low.clone(), self.middle.clone()


class Loss(nn.Module):
    """A loss module with a buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.calls = 0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        self.scale.mul_(1.1)
        return F.cross_entropy(logits, labels) * self.scale / self.calls

    def state(self) -> Any:
        return self.calls, self.scale.clone()


MODELS: dict[str, Callable[[], Stateful]] = {
    kind.__name__: kind
    for kind in (
        *(NumpyGenerator, NumpyRandomState, TorchGenerator, PythonGenerator),
        *(Annealed, Deep, Containers, LongRecord, Emptied, Hooked, LazyCounter, OnlyOnce, NumpyArray, OfTheScript),
        *(PlainTensors, LateBuffer, Queue, Expanded, Inference, Sparse, SparseRows, Resized, Float8, Overlapping),
        *(Teacher, TeacherWithoutData, TeacherRebound, TeacherReplaced, TeacherThatRequiresGrad),
    )
}
DEEP_COPIES = [name for name in MODELS if name not in ("OfTheScript", "SparseRows")]
"""Those of which a deep copy can be made, with a state of its own."""


def reset_script() -> None:
    """The state that no model owns, as at the beginning."""
    GLOBAL["calls"], OfTheScript.passes = 0, 0
    GLOBAL_RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
