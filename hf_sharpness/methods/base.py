"""What a sharpness-aware method is: hyper-parameters and one function that drives the passes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from .step import Step


def hyperparameter(
    default: Any, *, help: str, require: str, valid: Callable[[Any], bool], choices: tuple[str, ...] | None = None
) -> Any:
    """A dataclass field that defines a hyper-parameter once: default, help, and what a valid value is.

    Args:
        default: the default value.
        help: one or two sentences for ``--help`` and the documentation.
        require: how an error names the valid values, as in "must be a number >= 0".
        valid: says whether a value is one of them.
        choices: the valid values, where they are a few words.
    """
    metadata = {"help": help, "require": require, "valid": valid, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number (a bool is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_hyperparameters(cls: type, values: dict[str, Any], named: Callable[[str], str] = str) -> None:
    """Raise a ValueError that names the first hyper-parameter of ``cls`` whose value is not valid.

    Args:
        cls: a method.
        values: hyper-parameters by their name in ``cls``.
        named: how the caller calls a hyper-parameter (``rho`` -> ``sam_rho``).
    """
    for field in dataclasses.fields(cls):
        valid = field.metadata.get("valid")
        if field.name in values and valid is not None and not valid(values[field.name]):
            raise ValueError(f"{named(field.name)}={values[field.name]!r} is not valid: {field.metadata['require']}")


@dataclasses.dataclass
class Method:
    """Hyper-parameters of a method and its update rule. Subclass it, give it a ``name`` and write ``run``."""

    name: ClassVar[str]
    paper: ClassVar[str]
    """arXiv id of the paper that defines the method."""
    scopes: ClassVar[tuple[str, ...]] = ("global", "device", "micro_batch")
    """Whose gradient may make the perturbation."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """What the method measures of its own in every step."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that it keeps from step to step (``Step.keep``), checkpoints included."""

    def __post_init__(self) -> None:
        check_hyperparameters(type(self), dataclasses.asdict(self))

    def resolved(self, adaptive_base: bool) -> Method:
        """The method with every default filled in that depends on the base optimizer.

        Args:
            adaptive_base: whether the base scales its step per coordinate (Adam and the like) or not (SGD).
        """
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the update is the base optimizer's own, so that no further pass is needed."""
        return False

    @property
    def replays(self) -> int:
        """How many further forward-and-backward passes ``run`` makes, in every step."""
        raise NotImplementedError(
            f"{type(self).__name__} says how many replays it makes neither by `replays` nor by `replays_of`"
        )

    def replays_of(self, step: Step) -> int:
        """How many further forward-and-backward passes ``run`` is about to make in this step.

        Override it where steps differ, and decide by what all ranks have in common: ``step.number``, norms, ... A step
        without any has ``p.grad`` as the first pass left it.
        """
        return self.replays

    @property
    def decides_replays(self) -> bool:
        """Whether steps differ in the number of further passes."""
        return type(self).replays_of is not Method.replays_of

    @property
    def adds_after_step(self) -> bool:
        """Whether the method calls ``descend_after_step``."""
        return False

    def start_epoch(self) -> None:
        """Take note that the next step is the first of an epoch."""

    def run(self, step: Step) -> None:
        """Turn the gradient in p.grad into the one for the base optimizer."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What must outlive a checkpoint, in JSON types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
