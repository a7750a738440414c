"""Which of the optimizer's parameters are trained (``requires_grad``): the micro-batches of a step may differ in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from torch import nn

_FLAG = attrgetter("requires_grad")


class Trained:
    """The flags of parameters at one moment.

    Args:
        parameters: whose flags.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.flags = tuple(map(_FLAG, parameters))

    def restore(self) -> None:
        """Set them as they were."""
        for parameter, flag in self._changed():
            parameter.requires_grad_(flag)

    def add(self) -> None:
        """Have those trained as well that were trained at this moment."""
        for parameter, flag in self._changed():
            if flag:
                parameter.requires_grad_(True)

    def _changed(self) -> Iterable[tuple[nn.Parameter, bool]]:
        now = tuple(map(_FLAG, self.parameters))
        if now == self.flags:
            return []
        return [(p, was) for p, was, flag in zip(self.parameters, self.flags, now, strict=True) if was != flag]


class TrainedInStep:
    """Has all parameters trained, in a step's further passes, that one of its micro-batches trains.

    Attributes:
        parameters: those in the base optimizer's groups.
    """

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.at_end: Trained | None = None

    def begin(self, groups: Iterable[dict[str, list[nn.Parameter]]]) -> None:
        """A step begins."""
        self.parameters = [p for group in groups for p in group["params"]]

    def new(self, known: set[int]) -> list[nn.Parameter]:
        """Those that no earlier micro-batch has trained."""
        return [p for p in self.parameters if p.requires_grad and id(p) not in known]

    def train_all(self, before: Iterable[Trained]) -> None:
        """The first passes have been made.

        Args:
            before: the flags before each of them.
        """
        self.at_end = Trained(self.parameters)
        for trained in before:
            trained.add()

    def take(self) -> Trained:
        """The flags that the first passes have left."""
        found, self.at_end = self.at_end or Trained(self.parameters), None
        return found

    def forget(self) -> None:
        """The step is over, or was interrupted."""
        if self.at_end is not None:
            self.take().restore()
