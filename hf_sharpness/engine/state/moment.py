"""The state of passes at one moment of a step, for it to be put back."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from .draws import StandIns
from .generators import Standing
from .holders import Content, Elements, Holder, LeftAlone, Names
from .hooks import Hooks
from .paths import Path, Root
from .quiet import QuietModules, changed_of
from .reach import reach
from .reached import Reached
from .tensors import Region, Tensors
from .trained import Trained, TrainedInStep


class Known(Protocol):
    """What is known of the state in the step under way.

    Attributes:
        stand_ins: of the iterators that passes draw from.
        written: paths of tensors that passes are known to write.
        quiet: modules in which nothing changes.
        devices: whose random generators count.
        trained: which parameters are trained.
    """

    stand_ins: StandIns
    written: set[Path]
    quiet: QuietModules
    devices: list[torch.device]
    trained: TrainedInStep

    def parameters(self) -> list[nn.Parameter]:
        """The trainable weights."""

    def reach(self) -> Reached:
        """Walk the objects that a pass can reach."""

    def is_weight(self, value: Any) -> bool:
        """Whether a tensor, or a NumPy array, is moved and put back as one of the weights."""

    def lies_on_weights(self, region: Region) -> bool:
        """Whether a piece of memory is that of weights, or their gradients."""


class Moment:
    """The state at one moment of a step: random generators, Python values by reference, tensors.

    Args:
        state: of which it is a moment.
        earlier: the moment that the step began with, or None.
        large: copy large tensors that passes are known to write.
    """

    def __init__(self, state: Known, earlier: Moment | None, large: bool) -> None:
        reached = state.reach()
        known = {id(holder.target): content for holder, content in earlier.contents} if earlier else {}
        self.contents: list[tuple[Holder, Content]] = [(h, _taken(h, known)) for h in reached.holders]
        self.services = [(name, holder, holder.take()) for name, holder in reached.services]
        self.draws = state.stand_ins.put(self.contents, reached.iterators)
        self.optimizers = reached.optimizers
        self.wrappers = reached.wrappers
        self.quiet = state.quiet.entries
        self.hooks = Hooks(reached.hooks, state.quiet.inner, state.parameters())
        self.trained = Trained(state.trained.parameters)
        self.tensors = Tensors(reached.tensors, state.written, large, state.lies_on_weights)
        self.included: list[Tensors] = []
        self.left_alone = LeftAlone()
        self.random = Standing(state.devices, reached.generators)

    def include(self, state: Known, module: nn.Module) -> None:
        """Add a module that was not reached."""
        found = reach([Root(type(module).__name__, module)], state.is_weight, False, QuietModules())
        self.contents += [(holder, holder.take()) for holder in found.holders]
        self.contents += [(Names(m.__dict__), dict(m.__dict__)) for m in module.modules()]
        self.included.append(Tensors(found.tensors, state.written, True, state.lies_on_weights))

    def restore(self) -> None:
        """Make everything what it was at this moment. Harmless to repeat."""
        for holder, content in [*self.contents, *changed_of(self.quiet)]:
            holder.put(content, self.left_alone)
        self.hooks.restore()
        self.trained.restore()
        for draws, place in self.draws:
            draws.place = place
        for tensors in [self.tensors, *self.included]:
            tensors.restore()
        self.random.restore()


def _taken(holder: Holder, known: dict[int, Content]) -> Content:
    if isinstance(holder, Elements) and id(holder.target) in known:
        return holder.extended(known[id(holder.target)])
    return holder.take()
