"""What a sharpness-aware method is: hyper-parameters and one function that drives the passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from .base_kind import BaseKind
from .hyperparameters import check_hyperparameters
from .range_form import RangeForm
from .signs import Sign
from .step import Step


@dataclasses.dataclass
class Method:
    """Hyper-parameters of a method and its update rule.

    Subclass it, give it a ``name``, say how many ``replays`` it makes, write ``run``, and hand the class to
    ``register``. A subclass of another method shares the arguments of the hyper-parameters that it inherits.
    """

    name: ClassVar[str]
    """What ``--optim`` calls the method: lower case; its arguments begin with it."""
    paper: ClassVar[str] = ""
    """arXiv id of the paper that defines the method; a class with a ``name`` of its own has no other's."""
    bibtex: ClassVar[str] = ""
    """The paper's BibTeX entry. Empty: the model card names the paper alone."""
    scopes: ClassVar[tuple[str, ...]] = ("global",)
    """Whose gradient may make the perturbation (``options.SCOPES``)."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """What the method measures of its own in every step: ``step.metrics`` with these keys is logged."""
    allows_fraction: ClassVar[bool] = False
    """Whether a replay's gradient may be an estimate from a part of the batch (``Options.fraction``), which is right
    where the update is linear in it. A class with a ``name`` of its own has to say so itself."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that it keeps from step to step (``Step.keep``), checkpoints included."""
    step_ratio: ClassVar[str] = ""
    """Which of these metrics is the size of what is added after the step over the base's step. Empty: none."""
    radii: ClassVar[tuple[str, ...]] = ("rho",)
    """Hyper-parameters that are lengths of the perturbation, those that it has: ``sam_rho_schedule`` scales them. The
    first is what a comparison tunes and shows, and what warnings name."""
    signs: ClassVar[tuple[Sign, ...]] = ()
    """What shows, in the logs of a training, that the hyper-parameters do not fit: see ``methods/signs.py``."""
    range_forms: ClassVar[tuple[RangeForm, ...]] = ()
    """How a range test of rho reads what it measured (``hf-sharpness rho``). Empty: it says nothing of the method. A
    class with a ``name`` of its own has to say so itself."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """For tables: forms of the method, each with hyper-parameters. Empty: one, by the method's name."""
    shown: ClassVar[Mapping[str, str]] = {}
    """For its plain-loop class: attributes that it shows beside those of every method -> their names here."""
    without_epochs: ClassVar[Mapping[str, Any]] = {}
    """Hyper-parameters with another default in a plain loop, as long as it does not say when its epochs begin."""
    without_after_step: ClassVar[tuple[str, Any] | None] = None
    """A hyper-parameter and the value with which nothing is added after the step, for errors. None: there is none."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            for attribute in {"paper", "bibtex", "variants", "allows_fraction", "range_forms"} - vars(cls).keys():
                setattr(cls, attribute, getattr(Method, attribute))

    def __post_init__(self) -> None:
        check_hyperparameters(self)

    def resolved(self, base: BaseKind) -> Method:
        """The method with every default filled in that depends on the base optimizer.

        Args:
            base: what kind of optimizer that is.
        """
        return self

    @property
    def title(self) -> str:
        """The method in a heading."""
        return self.name.upper()

    @property
    def cited(self) -> dict[str, str]:
        """The papers behind the method as it is set up: arXiv id -> BibTeX, empty if there is none."""
        return {self.paper: self.bibtex} if self.paper else {}

    @classmethod
    def meanings(cls, settings: Mapping[str, Any], base: BaseKind) -> dict[str, str]:
        """For hyper-parameters whose number means another thing in another setting: the setting, in a few words.

        Args:
            settings: all hyper-parameters by name.
            base: as in ``resolved``.
        """
        return {}

    @classmethod
    def searches_by_epochs(cls, settings: Mapping[str, Any]) -> bool:
        """Whether passes beyond those of every step are made once an epoch, so that their cost is spread over it.

        Args:
            settings: all hyper-parameters by name.
        """
        return False

    @property
    def described(self) -> str:
        """The hyper-parameters in words: the first one, and those that are not at their default."""
        fields = dataclasses.fields(self)
        shown = [f.name for f in fields if f is fields[0] or getattr(self, f.name) != f.default]
        values = {name: getattr(self, name) for name in shown}
        return ", ".join(name if value is True else f"{name} {value}" for name, value in values.items())

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
    def probes(self) -> bool:
        """Whether the coming step calls ``Step.probe``: its first pass is then watched for what a probe needs."""
        return False

    @property
    def adds_after_step(self) -> bool:
        """Whether the method calls ``descend_after_step``."""
        return False

    @property
    def preconditions_term(self) -> bool:
        """Whether it does so with ``preconditioned``: a base optimizer whose preconditioner is not known is refused."""
        return False

    @property
    def accumulates(self) -> bool:
        """Whether the method calls ``Step.replay(accumulate=True)``: a check of the passes then has that form too."""
        return False

    def after_step_setting(self, named: Mapping[str, str]) -> str:
        """For an error about what is added after the step: what makes the method do so.

        Args:
            named: how the caller calls hyper-parameters.
        """
        if self.without_after_step is None:
            return f"the method {self.name}, which adds a term after the step,"
        name = self.without_after_step[0]
        return f"{named.get(name, name)}={getattr(self, name)!r}"

    def after_step_remedy(self, named: Mapping[str, str]) -> str:
        """For such an error: what to use instead."""
        if self.without_after_step is None:
            return "another method or base optimizer"
        name, value = self.without_after_step
        return f"{named.get(name, name)}={value!r}"

    def lengths(self) -> dict[str, float]:
        """The hyper-parameters of ``radii`` by name, those that the method has and that are set."""
        found = {name: getattr(self, name, None) for name in self.radii}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def usual(self) -> dict[str, float]:
        """Default values of what regularises, by name (rho, gamma), for the words on settings that do too little."""
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self)}
        return {name: defaults[name] for name in self.radii if defaults.get(name) is not None}

    def start_epoch(self) -> None:
        """Take note that an epoch begins; its first sharpness-aware step is the next or a later one."""

    def run(self, step: Step) -> None:
        """Turn the gradient in p.grad into the one for the base optimizer."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What must outlive a checkpoint, in JSON types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
