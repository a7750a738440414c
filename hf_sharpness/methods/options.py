"""What can be chosen for the steps of every method, beside the method: when it is on, whose gradient perturbs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .hyperparameters import check_hyperparameters, hyperparameter, hyperparameters, is_number

if TYPE_CHECKING:
    from .base import Method

SCOPES = {
    "global": "the gradient of the whole effective batch, averaged over ranks",
    "device": "each rank's own accumulated gradient (m-sharpness, SAM's own setting on several devices)",
    "micro_batch": "every micro-batch alone, on every rank",
}
"""Whose gradient makes the perturbation."""

RHO_SCHEDULES = {
    "constant": "rho as it is given",
    "lr": "rho times the learning rate over its peak",
    "linear": "up in equal steps over the first tenth of the sharpness-aware steps",
}
"""How long the perturbation is from step to step."""

DECAY = "decay"
"""The ``start`` that the learning rate's schedule says."""

WHEN = {"start": 0.0, "stop": 1.0}
"""The options that say which steps are sharpness-aware, as they are where all of them are."""

PREFIX = "sam"
"""What the options' names among the training arguments begin with."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the steps. A new one is a field here; the training arguments and the plain loop take it up."""

    scope: str = hyperparameter(
        "global",
        help="Whose gradient makes the perturbation: "
        + "; ".join(f"`{name}`: {meaning}" for name, meaning in SCOPES.items())
        + ".",
        require=f"must be one of {', '.join(SCOPES)}",
        valid=lambda v: v in SCOPES,
        choices=tuple(SCOPES),
    )

    check: str = hyperparameter(
        "warn",
        help="What to do where a further pass at the same weights does not repeat the first: `warn`, `error` or `off`. "
        "It is looked at in steps 1, 10, 100, ..., in the first of every epoch and in the first after a resume, which "
        "costs one more pass there.",
        require="must be one of warn, error, off",
        valid=lambda v: v in ("warn", "error", "off"),
        choices=("warn", "error", "off"),
    )

    start: float | str = hyperparameter(
        0.0,
        help="When sharpness begins: a fraction of the training's optimizer steps, which are the base optimizer's own "
        "before (.5: the second half is sharpness-aware); or `decay`: at the step from which the learning rate falls "
        "to the end (`warmup_stable_decay` and the like).",
        require="must be a number with 0 <= start < 1, or 'decay'",
        valid=lambda v: v == DECAY or (is_number(v) and 0 <= v < 1),
    )

    stop: float = hyperparameter(
        1.0,
        help="When sharpness ends: a fraction of the training's optimizer steps, the base optimizer's own from there.",
        require="must be a number with 0 < stop <= 1",
        valid=lambda v: is_number(v) and 0 < v <= 1,
    )

    rho_schedule: str = hyperparameter(
        "constant",
        help="The length of the perturbation from step to step: "
        + "; ".join(f"`{name}`: {meaning}" for name, meaning in RHO_SCHEDULES.items())
        + ".",
        require=f"must be one of {', '.join(RHO_SCHEDULES)}",
        valid=lambda v: v in RHO_SCHEDULES,
        choices=tuple(RHO_SCHEDULES),
    )

    fraction: float = hyperparameter(
        1.0,
        help="The part f of each batch that the further pass goes over: its first micro-batches, for "
        "1 + f passes a step, or without gradient accumulation its first examples, for 1 + 2f.",
        require="must be a number with 0 < fraction <= 1",
        valid=lambda v: is_number(v) and 0 < v <= 1,
    )

    target_modules: str | None = hyperparameter(
        None,
        help="Perturb the parameters of these modules alone: names or globs between commas, or the words `norm` "
        "(normalisation layers) and `head` (what makes the logits). All others take the gradient found there too.",
        require="must be names or globs of modules, or the words norm and head, between commas (or unset for all)",
        valid=lambda v: v is None or all(name.strip() for name in v.split(",")),
    )

    def __post_init__(self) -> None:
        check_hyperparameters(self)

    @property
    def described(self) -> str:
        """What differs from the defaults and has a say in the update, as arguments in words; empty if nothing does."""
        named = {h.argument: (getattr(self, name), h.default) for name, h in hyperparameters(Options, PREFIX).items()}
        named.pop(f"{PREFIX}_check")
        return "".join(f", {argument} {value}" for argument, (value, default) in named.items() if value != default)

    def check_together(self, method: Method, prefix: str = "") -> None:
        """Raise a ValueError where options make no sense with one another, or with the method.

        Args:
            method: the method.
            prefix: what the caller's names of options begin with, such as ``sam_``.
        """
        if isinstance(self.start, (int, float)) and self.start >= self.stop:
            raise ValueError(
                f"{prefix}start={self.start!r} and {prefix}stop={self.stop!r} leave no step to be sharpness-aware: "
                f"must be {prefix}start < {prefix}stop"
            )
        if self.rho_schedule != "constant" and not method.lengths():
            raise ValueError(
                f"{prefix}rho_schedule={self.rho_schedule!r} has nothing to scale: the method {method.name!r} has no "
                f"{' or '.join(method.radii) or 'rho'}. Leave it out"
            )
