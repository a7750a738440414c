"""What can be chosen for the steps of every method, beside the method: whose gradient makes the perturbation."""

from __future__ import annotations

import dataclasses

from .hyperparameters import check_hyperparameters, hyperparameter

SCOPES = {
    "global": "the gradient of the whole effective batch, averaged over ranks",
    "device": "each rank's own accumulated gradient (m-sharpness, SAM's own setting on several devices)",
    "micro_batch": "every micro-batch alone, on every rank",
}
"""Whose gradient makes the perturbation."""

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

    def __post_init__(self) -> None:
        check_hyperparameters(self)
