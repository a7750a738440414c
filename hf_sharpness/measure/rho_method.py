"""The range test as a method: in some steps it climbs over a grid of radii, in all others it is the base optimizer.

So it runs wherever a method runs, on the batches of the training itself, with the same dropout masks and buffers at
every radius, and the training goes on as if nothing had been measured.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..methods import Method, Step
from ..vectors import clone

NAME = "rhorange"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which steps measure what.

    Args:
        radii: the radii, rising.
        batches: how many batches to measure in each of SAM's and ASAM's metric, before and after the warm-up.
        warm_up: how many plain steps lie between.
    """

    radii: tuple[float, ...]
    batches: int
    warm_up: int

    @property
    def steps(self) -> int:
        """All steps of the test."""
        return 4 * self.batches + self.warm_up

    def look(self, number: int) -> tuple[str, bool] | None:
        """What the step of that number measures: `before` or `after`, and whether in ASAM's metric; None: nothing."""
        when = "before"
        if number >= 2 * self.batches:
            when, number = "after", number - 2 * self.batches - self.warm_up
        return (when, number % 2 == 1) if 0 <= number < 2 * self.batches else None


@dataclasses.dataclass
class RhoRange(Method):
    """Measure a batch at every radius along its own gradient; hand the plain gradient to the base optimizer.

    It is no choice for a training: `rho_run` registers it for the time of a test.

    Attributes:
        plan: which steps measure; None: no step does.
        found: a record for every measured step, in numbers.
    """

    name: ClassVar[str] = NAME

    plan: Plan | None = dataclasses.field(init=False, default=None)
    found: list[dict[str, Any]] = dataclasses.field(init=False, default_factory=list)

    @property
    def described(self) -> str:
        return "a range test"

    @property
    def replays(self) -> int:
        return len(self.plan.radii) if self.plan is not None else 0

    def replays_of(self, step: Step) -> int:
        return self.replays if self.plan is not None and self.plan.look(step.number) is not None else 0

    def run(self, step: Step) -> None:
        look = None if self.plan is None else self.plan.look(step.number)
        if self.plan is None or look is None:
            return
        when, adaptive = look
        scale = step.loss_scale
        g = step.take_gradient()
        norm = step.norm(g)
        at = 0.0
        radii: list[dict[str, Any]] = []
        slope = length = torch.zeros(())
        for rho in self.plan.radii:
            # The move is along g from where the last one ended: with ASAM in the metric of w_0 each time.
            move = step.climb_along(clone(g), rho - at, adaptive)
            if not radii:
                slope = step.dot(move, step.pad(g)) / (rho * scale)
                length = step.norm(move) / rho
            at = rho
            del move
            step.replay()
            g_s, g = step.take_gradient(), step.pad(g)
            g_s_norm = step.norm(g_s)
            radii.append(
                {
                    "rho": rho,
                    "loss": step.mean_over_ranks(torch.as_tensor(step.metrics["perturbed_loss"])),
                    "gradient_norm": g_s_norm / scale,
                    "cosine": step.dot(g, g_s) / (norm * g_s_norm),
                }
            )
        step.put_gradient(g)
        numbers = {
            "step": step.number,
            "when": when,
            "adaptive": adaptive,
            "loss": step.mean_over_ranks(torch.as_tensor(step.metrics["loss"])),
            "gradient_norm": norm / scale,
            "slope": slope,  # of the loss by rho: the linear prediction of sharpness is rho times it
            "length": length,  # of the perturbation in the units of the weights, by rho
            "radii": radii,
        }
        self.found.append(_numbers(numbers))


def _numbers(value: Any) -> Any:
    """Tensors as numbers; what a measurement costs anyway is not worth doing later."""
    if isinstance(value, torch.Tensor):
        return float(value)
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    return [_numbers(inner) for inner in value] if isinstance(value, list) else value
