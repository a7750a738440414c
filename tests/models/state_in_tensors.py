"""Models with state in tensors: plain, large, sparse, resized, of a teacher, read and changed by every forward pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .state_base import WIDTH, Stateful


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
