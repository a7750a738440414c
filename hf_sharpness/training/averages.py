"""Averages of what the steps measured, kept on the device between two logs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Averages:
    """Running means of named scalars. Adding costs a few kernels and no synchronisation; non-finite values are skipped.

    A scalar given as a Python number (XSAM's alpha) is a setting rather than a measurement: its last value is kept.

    Args:
        names: the scalars, the same on every rank.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.totals: Tensor | None = None
        self.settings: dict[str, float] = {}

    def add(self, metrics: dict[str, Tensor | float]) -> None:
        """Take in one step's scalars; a missing one does not count."""
        device = next((v.device for v in metrics.values() if isinstance(v, Tensor)), None)
        if not self.names or device is None:
            return
        self.settings.update({k: v for k, v in metrics.items() if k in self.names and not isinstance(v, Tensor)})
        missing = torch.full((), float("nan"), device=device)
        measured = [metrics.get(name, missing) for name in self.names]
        values = torch.stack([v.to(device, torch.float32) if isinstance(v, Tensor) else missing for v in measured])
        finite = values.isfinite()
        step = torch.stack([torch.where(finite, values, 0.0), finite.to(values.dtype)])
        self.totals = step if self.totals is None else self.totals + step

    def take(self, sum_over_ranks: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """The means over all steps and ranks since the last call, and the settings; a name without values is absent."""
        totals = self.totals if self.totals is not None else torch.zeros(2, len(self.names), device=device)
        self.totals = None
        sums, counts = sum_over_ranks(totals).tolist()
        means = {name: s / n for name, s, n in zip(self.names, sums, counts, strict=True) if n}
        return {**means, **self.settings}
