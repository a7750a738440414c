"""Notices whether somebody has changed the gradients, without reading their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..engine import Engine
from ..engine.earlier import Fingerprint
from ..engine.for_a_while import leave, modes_on
from ..engine.parallel import unreduced_gradients
from ..vectors import local

_READS_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


class GradientWatch:
    """Whether ``p.grad`` of any parameter was replaced, or written to, since the last ``note``.

    Reads no values, so it costs no device synchronisation: it compares objects, addresses and autograd's version
    counters. What is written through ``p.grad.data``, which has a counter of its own, is seen by the mode below.

    Args:
        parameters: those whose gradients are watched.
        model: of which FSDP2 may hold gradients that it has not reduced yet. Default None: it does not.
        hidden_passes: counts the backward passes whose gradients are not in ``p.grad`` (DeepSpeed's). Default: none.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        model: nn.Module | None = None,
        hidden_passes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.parameters = list(parameters)
        self.model = model
        self.hidden_passes = hidden_passes
        self.passes_noted = 0
        self.unreduced = self._unreduced()
        self.noted: list[tuple[Tensor | None, object]] = []
        self.aliases: _Aliases | None = None

    @classmethod
    def of(cls, engine: Engine) -> GradientWatch:
        """That of the gradients of an engine's model and base optimizer, which the user's code may change."""
        model, weights = engine.model, engine.weights
        parameters = {id(p): p for p in [*model.parameters(), *weights.parameters()] if p.requires_grad}
        return cls(parameters.values(), model, weights.hidden_passes)

    def note(self, through_data: bool = True) -> None:
        """The gradients are watched from now on.

        Args:
            through_data: with what is written through ``p.grad.data``; costs a little in every call of torch's.
        """
        self.close()
        self.noted = [(p.grad, _mark(p.grad)) for p in self.parameters]
        self.unreduced = self._unreduced()
        self.passes_noted = self.hidden_passes()
        gradients = {id(gradient) for gradient, _ in self.noted if gradient is not None}
        # The mode goes onto the top of a stack: under one of the user's own, the two could not leave in order.
        if through_data and gradients and not modes_on():
            self.aliases = _Aliases(gradients)
            self.aliases.__enter__()

    def changed(self) -> bool:
        """Whether the gradients are other ones than those that were noted, or hold other values."""
        if any(
            p.grad is not gradient or _mark(p.grad) != mark
            for p, (gradient, mark) in zip(self.parameters, self.noted, strict=True)
        ):
            return True
        if self._unreduced().differs_from(self.unreduced) or self.hidden_passes() != self.passes_noted:
            return True
        return self.aliases is not None and self.aliases.written()

    def close(self) -> None:
        """Watch no longer, and keep no gradient alive. Repeated, it ends what an interrupt has left of it."""
        self.noted, self.unreduced = [], Fingerprint(())
        leave(self.aliases)
        self.aliases = None

    def _unreduced(self) -> Fingerprint:
        return Fingerprint((), () if self.model is None else unreduced_gradients(self.model))


def _mark(gradient: Tensor | None) -> object:
    """Differs once the tensor has been written to, or holds another storage."""
    if gradient is None:
        return None
    stored = local([gradient])[0] if gradient.layout == torch.strided else gradient._values()
    return gradient._version, stored._version, stored.data_ptr()


class _Aliases(TorchFunctionMode):
    """Keeps every ``gradient.data`` that is asked for: its version counter tells whether it was written to."""

    def __init__(self, gradients: set[int]) -> None:
        super().__init__()
        self.gradients = gradients
        self.seen: list[tuple[Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == _READS_DATA and id(args[0]) in self.gradients:
            self.seen.append((result, result._version))
        return result

    def written(self) -> bool:
        return any(alias._version != version for alias, version in self.seen)
