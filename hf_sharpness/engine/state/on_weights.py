"""What code keeps on the weights and in the base optimizer's settings: ``p.importance``, ``group["lr"] *= .9``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .holders import Content, Names
from .paths import Root
from .reached import Reached

if TYPE_CHECKING:
    from ..weights import Weights

_PARAMS = frozenset({"params"})


class Attributes(Names):
    """A weight's attributes, but for what libraries mark it with: names that begin with ``_``."""

    __slots__ = ()

    def changes(self, content: Content) -> list[tuple[Any, Any, Any]]:
        return [change for change in super().changes(content) if _is_the_users(change[0])]

    def of_the_user(self) -> dict[str, Any]:
        """What is kept there."""
        return {name: value for name, value in self.target.items() if _is_the_users(name)}


def _is_the_users(name: str) -> bool:
    return not name.startswith("_")


class OnWeights:
    """The settings of the base optimizer's groups, and the attributes of the weights that have any.

    Attributes are left alone where a library keeps its own there: it binds other tensors to the names of parameters
    (FSDP2, ZeRO-3), or has gradients elsewhere than in p.grad (DeepSpeed).

    Args:
        parameters: the weights.
        weights: where they are.
        whole: look at all weights, as a pass may give them the first attribute.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weights: Weights, whole: bool) -> None:
        self.settings = [Names(group, _PARAMS) for group in weights.optimizer.param_groups]
        are_librarys = weights.binds_weights or not weights.gradients_are_visible
        attributes = () if are_librarys else map(vars, parameters)
        self.attributes = [Attributes(own) for own in attributes if whole or any(map(_is_the_users, own))]

    def roots(self) -> list[Root]:
        """Where to look for what the attributes hold."""
        found = [(index, tuple(own.of_the_user().values())) for index, own in enumerate(self.attributes)]
        return [Root(f"weight {index}", values) for index, values in found if values]

    def add_to(self, reached: Reached) -> None:
        """Add the names to what a walk has found, and the numbers that are tensors (a learning rate)."""
        reached.holders += [*self.settings, *self.attributes]
        for index, holder in enumerate(self.settings):
            found = [(name, value) for name, value in holder.target.items() if isinstance(value, Tensor)]
            reached.tensors += [(((None, f"param group {index}"), name), value) for name, value in found]
