"""Models that hold state in all sorts of places, which each forward pass in train mode reads and changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .state_base import Stateful
from .state_in_objects import (
    Annealed,
    Containers,
    Deep,
    Emptied,
    Hooked,
    LazyCounter,
    LongRecord,
    NumpyArray,
    NumpyGenerator,
    NumpyRandomState,
    OfTheScript,
    OnlyOnce,
    PythonGenerator,
    TorchGenerator,
)
from .state_in_tensors import (
    Expanded,
    Float8,
    Inference,
    LateBuffer,
    Overlapping,
    PlainTensors,
    Queue,
    Resized,
    Sparse,
    SparseRows,
    Teacher,
    TeacherRebound,
    TeacherReplaced,
    TeacherThatRequiresGrad,
    TeacherWithoutData,
)


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


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
