"""The measures that a few passes give: of one model on one set of examples, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..vectors import Vector
from .ball import sharpness, worst
from .batches import Batches
from .critical import critical_sharpness
from .surface import Surface
from .updates import adam_first

RHO = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
ADAPTIVE_RHO = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WORST_RHO = (0.05,)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        rho: lengths of SAM's perturbation.
        adaptive_rho: lengths of ASAM's, in its own metric.
        worst_rho: radii within which the worst loss is looked for.
        worst_steps: ascents of that search after the first, one forward and backward pass each.
    """

    rho: tuple[float, ...] = RHO
    adaptive_rho: tuple[float, ...] = ADAPTIVE_RHO
    worst_rho: tuple[float, ...] = WORST_RHO
    worst_steps: int = 10

    def passes(self) -> int:
        """About how many passes over the examples it takes, a backward pass counted as one."""
        return 2 + len(self.rho) + len(self.adaptive_rho) + len(self.worst_rho) * (self.worst_steps + 1) + 2 * 5


def measures(surface: Surface, settings: Settings) -> Iterator[tuple[str, Any]]:
    """Yield each measure's name and value (numbers, lists and mappings) as soon as it is there.

    Args:
        surface: the loss, entered.
        settings: what to measure.
    """
    loss, gradient = surface.gradient()
    yield "gradient_norm", surface.norm(gradient)
    yield "weight_norm", surface.weight_norm
    for name, rhos, adaptive in (
        ("sharpness", settings.rho, False),
        ("adaptive_sharpness", settings.adaptive_rho, True),
    ):
        if rhos:
            found = sharpness(surface, loss, gradient, rhos, adaptive)
            yield name, [dataclasses.asdict(entry) for entry in found]
    updates: Mapping[str, Vector] = {"gradient": gradient, "adamw": adam_first(gradient)}
    yield (
        "critical_sharpness",
        {
            name: dataclasses.asdict(critical_sharpness(surface, loss, gradient, update))
            for name, update in updates.items()
        },
    )
    if settings.worst_rho:
        found_worst = [worst(surface, loss, gradient, rho, settings.worst_steps) for rho in settings.worst_rho]
        yield (
            "worst_loss",
            [
                {"rho": w.rho, "loss": w.loss, "sharpness": w.sharpness, "steps": settings.worst_steps + 1}
                for w in found_worst
            ],
        )


def relative(surface: Surface, other: Batches) -> dict[str, Any]:
    """Relative critical sharpness (arXiv 2601.16979): of one loss along the update that another loss gives.

    Args:
        surface: a loss, entered.
        other: the examples of another.

    Returns:
        ``of_data_along_other`` and ``of_other_along_data``, each by the kind of update.
    """
    loss, gradient = surface.gradient()
    others_loss, others_gradient = surface.gradient(batches=other)
    pairs = {
        "of_data_along_other": (loss, gradient, others_gradient, None),
        "of_other_along_data": (others_loss, others_gradient, gradient, other),
    }
    return {
        name: {
            kind: dataclasses.asdict(critical_sharpness(surface, at_w, slope, update, batches=batches))
            for kind, update in {"gradient": along, "adamw": adam_first(along)}.items()
        }
        for name, (at_w, slope, along, batches) in pairs.items()
    }
