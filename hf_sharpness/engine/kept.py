"""Vectors that a method keeps from one step to the next and through a checkpoint, sharded as the weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import vectors
from ..vectors import Vector
from .parallel import mean_over_ranks
from .weights import Weights


class Kept:
    """What a method keeps, by name and parameter, in float32 or wider and without the loss scale.

    A step that goes wrong, or overflows, leaves what was kept before it.

    Args:
        method: the method's name, for messages.
        names: what it may keep (``Method.keeps``).
        weights: where the weights are.
    """

    def __init__(self, method: str, names: tuple[str, ...], weights: Weights) -> None:
        self.method = method
        self.names = names
        self.weights = weights
        self.values: dict[str, dict[nn.Parameter, Tensor]] = {name: {} for name in names}
        self.pending: dict[str, dict[nn.Parameter, Tensor]] = {}
        self.spoiled = False

    def has(self, name: str) -> bool:
        """Whether something is kept under the name."""
        self._check(name)
        return bool(self.values[name]) or name in self.pending

    def get(self, name: str, params: list[nn.Parameter], scale: float | Tensor) -> Vector | None:
        """A copy for these parameters, times the loss scale; None if nothing is kept."""
        if not self.has(name):
            return None
        kept = self.values[name] | self.pending.get(name, {})
        vector = [
            kept[p].clone() if p in kept else torch.zeros_like(t, dtype=_wide(t))
            for p, t in zip(params, vectors.local(params), strict=True)
        ]
        if isinstance(scale, Tensor):
            vectors.scale_(vector, scale)
        return vector

    def put(self, name: str, params: list[nn.Parameter], vector: Vector, scale: float | Tensor) -> None:
        """Keep a vector for these parameters, which carries the loss scale, once the step has succeeded."""
        self._check(name)
        gradients = {t.data_ptr() for t in vectors.local([p.grad for p in params if p.grad is not None])}
        vector = [t.to(_wide(t), copy=t.data_ptr() in gradients) for t in vector]
        if isinstance(scale, Tensor):
            vectors.scale_(vector, 1.0 / scale)
        self.pending.setdefault(name, {}).update(zip(params, vector, strict=True))

    def commit(self) -> None:
        """The step has succeeded: what it keeps counts, unless it overflowed."""
        if not self.spoiled:
            for name, kept in self.pending.items():
                self.values[name].update(kept)
        self.drop()

    def spoil(self) -> None:
        """The step overflows: what it is to keep, now or later, will be dropped."""
        self.spoiled = True

    def check_finite(self) -> None:
        """Spoil the step if what it is to keep is not finite."""
        if not all(self._is_finite(kept) for kept in self.pending.values()):
            self.spoil()

    def drop(self) -> None:
        """The step has failed: forget what it was to keep."""
        self.pending = {}
        self.spoiled = False

    def state_dict(self) -> dict[str, Any]:
        """This rank's tensors, by name and the parameter's number in the base optimizer's groups, and their layout."""
        numbers = {p: number for number, p in enumerate(self.weights.parameters())}
        kept = {
            name: {numbers[p]: tensor for p, tensor in by_parameter.items() if p in numbers}
            for name, by_parameter in self.values.items()
        }
        return {"method": self.method, "layout": self.weights.layout(), "kept": kept}

    def load_state_dict(self, state: dict[str, Any] | None) -> str | None:
        """Take over a saved state on all ranks, which call this together; on none if one of them cannot.

        Args:
            state: this rank's; None if there is none.

        Returns:
            Why it was not taken over, so that what is kept starts anew; None if it was.
        """
        self.pending, self.values = {}, {name: {} for name in self.names}
        if not self.names:
            return None
        params = self.weights.parameters()
        reason = "there is none" if state is None else self._why_not(state)
        failures = torch.tensor(0.0 if reason is None else 1.0, device=params[0].device)
        if mean_over_ranks(failures, self.weights.rank_groups()) > 0:
            return reason or "another rank could not take over its own"
        assert state is not None
        devices = [t.device for t in vectors.local(params)]
        for name in self.names:
            self.values[name] = {params[n]: t.to(devices[n]) for n, t in state["kept"].get(name, {}).items()}
        return None

    def _why_not(self, state: dict[str, Any]) -> str | None:
        if state.get("method") != self.method:
            return f"it is of the method {state.get('method')!r}, not of {self.method!r}"
        layout = self.weights.layout()
        if state["layout"] != layout:
            return f"it was saved on {state['layout']}, and this is {layout}"
        shapes = [t.shape for t in vectors.local(self.weights.parameters())]
        for kept in state["kept"].values():
            if any(number >= len(shapes) or tensor.shape != shapes[number] for number, tensor in kept.items()):
                return "its tensors have not the shapes of the weights"
        return None

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(
                f"the method {self.method!r} keeps {name!r} without saying so: list it in its class's "
                f"`keeps` = {self.names!r}"
            )

    def _is_finite(self, kept: dict[nn.Parameter, Tensor]) -> bool:
        values, owners = list(kept.values()), self.weights.owners(list(kept))
        norm = vectors.norm(values, owners)
        return bool(norm.isfinite() or vectors.norm_of_large(values, owners).isfinite())


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
