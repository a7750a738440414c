"""Puts together what the runs of a step have measured: one run, or one for every micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def merged(measured: Sequence[dict[str, Tensor | float]]) -> dict[str, Tensor | float]:
    """The metrics of a step: losses summed over micro-batches that ran alone, the rest averaged.

    Args:
        measured: the metrics of each run, some of which may lack some.

    Returns:
        By name; with a ``perturbed_loss`` also ``sharpness``, its difference to ``loss``.
    """
    total: dict[str, Tensor | float] = {}
    for name in dict.fromkeys(name for metrics in measured for name in metrics):
        values = [metrics[name] for metrics in measured if name in metrics]
        summed = sum(values[1:], start=values[0])
        total[name] = summed if name in ("loss", "perturbed_loss") else summed / len(values)
    if "perturbed_loss" in total:
        total["sharpness"] = total["perturbed_loss"] - total["loss"]
    return total
