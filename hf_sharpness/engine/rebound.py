"""Weights that a pass binds to other memory: ``param.data = backup[name]``, the usual end of an attack on weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..vectors import Vector, is_sharded


class Rebound:
    """Follows parameters to the memory that passes bind them to, and takes them home in the end.

    Attributes:
        left: memory that a parameter lay on before, and lies on again in the end.
        indices: for each of these the number of the parameter.
    """

    def __init__(self) -> None:
        self.home: Vector = []
        self.left: Vector = []
        self.indices: list[int] = []

    def follow(self, parameters: Sequence[nn.Parameter], live: Vector, follows: Sequence[bool]) -> bool:
        """Put into ``live`` the memory that parameters lie on now.

        Args:
            parameters: the parameters.
            live: the memory that each of them lay on; changed in place.
            follows: which of them to look at. Not those that share memory.

        Returns:
            Whether any has moved.
        """
        self.home += live[len(self.home) :]
        moved = False
        for index, (parameter, follow) in enumerate(zip(parameters, follows, strict=True)):
            if follow and not is_sharded(parameter) and parameter.data_ptr() != live[index].data_ptr():
                self.left.append(live[index])
                self.indices.append(index)
                live[index] = parameter.detach()
                moved = True
        return moved

    def return_home(self, parameters: Sequence[nn.Parameter], live: Vector) -> None:
        """Bind each parameter to the memory that it lay on at first, which holds its values again."""
        for index in set(self.indices):
            if parameters[index].data_ptr() != self.home[index].data_ptr():
                parameters[index].data = self.home[index]
            live[index] = self.home[index]
