"""The arms of a study: the sharpness-aware ones the user asks about, and the base arms each has to beat."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..methods import METHODS, registry
from ..methods.hyperparameters import Hyperparameter
from ..methods.options import PREFIX
from ..sharpness_arguments.definitions import shared_arguments
from ..tasks.errors import first_line, nearest
from ..tasks.yaml12 import parse_yaml
from .errors import CompareError

OWN_METHODS = tuple(name for name in METHODS if registry.package_of(name) is None)
"""The methods of this package."""
PARTS_OF_RADIUS = (5, 2.5, 1)
"""How far a method perturbs (sam_rho) is chosen, where nothing is said, from its default divided by these."""
SAME_COST = 1.1
"""Arms whose costs differ by at most this factor share one base arm at equal passes, that of the dearest."""
AVERAGES = ("swa", "ema")

_NAMES = {"adamw_torch": "AdamW", "adamw_torch_fused": "AdamW", "sgd": "SGD", "adafactor": "Adafactor"}


def own_arguments() -> tuple[str, ...]:
    """Arguments that a sharpness-aware arm may set besides its method and base optimizer."""
    return tuple(name for name in shared_arguments() if name not in ("optim", "base_optim"))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        name: Unique in the study.
        kind: `base`, `averaged` (read off the runs of base arms) or `sharpness`.
        arguments: Training arguments that make it.
        choices: Argument -> the values tuning chooses from.
        cost: Passes of an optimizer step: forward and backward over the effective batch, a forward alone a third.
        cap: Most optimizer steps, in multiples of the recipe's (or script's) own.
        bases: Of a sharpness-aware arm: the names of its base arms. Of an averaged one: whose runs it is read off.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    choices: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    cost: float = 1.0
    cap: float = 1.0
    bases: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether it has runs of its own."""
        return self.kind != "averaged"


def settings_of(arm: Arm) -> list[dict[str, Any]]:
    """Every combination of what an arm's tuning chooses from."""
    names = list(arm.choices)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*arm.choices.values())]


def swept(arms: Sequence[Arm]) -> list[Arm]:
    """One arm for every setting that an arm leaves open, named by it: `sam-rho.02`."""
    found = []
    for arm in arms:
        for setting in settings_of(arm):
            words = [f"{argument.partition('_')[2]}{short(value)}" for argument, value in setting.items()]
            name = "-".join([arm.name, *words])
            found.append(dataclasses.replace(arm, name=name, arguments={**arm.arguments, **setting}, choices={}))
    return found


def short(value: Any) -> str:
    """A value as a name shows it: .02 for 0.02."""
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:g}".removeprefix("0") if 0 < value < 1 else f"{value:g}"


def optimizer_name(base_optim: str) -> str:
    """How people write a base optimizer."""
    return _NAMES.get(base_optim, base_optim)


def sharpness_arms(
    spec: str | None, choices: Mapping[str, Sequence[Any]], own: Mapping[str, Any], base_optim: str
) -> list[Arm]:
    """The sharpness-aware arms of `--arms` and `--sam_rho` and the like; their costs are still to be measured.

    Args:
        spec: `base,sam,wsam`, the path of a YAML file (`name: {optim: sam, sam_rho: [.01, .02]}`), or None for all
            methods of this package.
        choices: Argument -> values, from the command line; it goes to every arm whose method has the argument, unless
            a YAML file says something else for it.
        own: The recipe's (or script's) own sharpness arguments; a method takes over those that are its own.
        base_optim: The base optimizer.

    Raises:
        CompareError: An unknown arm, argument or value.
    """
    if spec is not None and spec.endswith((".yaml", ".yml")):
        sections = _read(Path(spec))
    else:
        names = [name.strip() for name in (spec or ",".join(OWN_METHODS)).split(",") if name.strip()]
        sections = {name: {"optim": name} for name in names if name != "base"}
    if not sections:
        raise CompareError("--arms: name at least one sharpness-aware arm, as in --arms base,sam")
    arms = []
    unused = set(choices)
    for name, section in sections.items():
        method = str(section.get("optim"))
        if method not in METHODS:
            raise CompareError(
                f"--arms: optim {method!r} of the arm '{name}' is not a sharpness-aware method"
                f"{nearest(method, METHODS)}; those are {', '.join(METHODS)} (the base arms come by themselves)"
            )
        known = [argument for argument in own_arguments() if _belongs(argument, method)]
        for argument in section:
            if argument not in (*known, "optim", "base_optim"):
                raise CompareError(
                    f"--arms: the arm '{name}': '{argument}' is no argument of {method}{nearest(argument, known)}; it "
                    f"has {', '.join(known)}"
                )
        merged: dict[str, Any] = {argument: own[argument] for argument in known if argument in own}
        if (radius := registry.radius_of(METHODS[method])) is not None:  # the recipe's one value is not tuned
            given = {**merged, **choices, **section}
            usual = _usual(method, radius, given)
            if len(usual) > 1 and radius.argument not in {*choices, *section}:
                raise CompareError(
                    f"--arms: the arm '{name}' tries settings whose {radius.argument} is in different units (usually "
                    f"{', '.join(f'{value:g}' for value in usual)}): make an arm of each, or give it {radius.argument}"
                )
            merged[radius.argument] = tuple(usual[0] / part for part in PARTS_OF_RADIUS)
        for argument, values in choices.items():
            if argument in known:
                merged[argument] = tuple(values)
                unused.discard(argument)
        merged.update(section)
        chosen = {key: tuple(value) for key, value in merged.items() if isinstance(value, list | tuple)}
        riding = {key: values for key, values in chosen.items() if len(values) > 1}
        fixed = {key: value for key, value in merged.items() if key not in chosen}
        fixed.update({key: values[0] for key, values in chosen.items() if len(values) == 1})
        fixed.setdefault("base_optim", base_optim)
        arms.append(Arm(name, "sharpness", fixed, riding))
    if unused:
        raise CompareError(f"--{sorted(unused)[0]}: no arm of {', '.join(sections)} has this argument")
    return arms


def _usual(method: str, radius: Hyperparameter, arguments: Mapping[str, Any]) -> list[float]:
    """How far a method perturbs by default, with each of an arm's other settings: ASAM ten times as far as SAM."""
    cls = METHODS[method]
    tried: dict[str, list[Any]] = {}
    for argument, hyperparameter in registry.arguments_of(cls).items():
        given = arguments.get(argument, hyperparameter.default)
        if argument != radius.argument:
            tried[hyperparameter.name] = list(given) if isinstance(given, list | tuple) else [given]
    found: list[float] = []
    for values in itertools.product(*tried.values()):
        with contextlib.suppress(TypeError, ValueError):  # whoever makes training arguments of them says what is wrong
            found.append(cls(**dict(zip(tried, values, strict=True))).usual.get(radius.name, radius.default))
    return sorted(set(found)) or [radius.default]


def with_base_arms(arms: Sequence[Arm], base_optim: str, averaging: bool) -> list[Arm]:
    """All arms, once the sharpness-aware ones' costs are known: `base`, one at every cost, averaged ones, then these.

    Args:
        arms: The sharpness-aware ones, with their costs.
        base_optim: The base optimizer.
        averaging: Whether weights can be averaged; a script's cannot.
    """
    plain = {"optim": base_optim}
    made = {"base": Arm("base", "base", plain)}
    groups: list[list[Arm]] = []
    for arm in sorted(arms, key=lambda arm: -arm.cost):
        if groups and groups[-1][0].cost <= SAME_COST * arm.cost:
            groups[-1].append(arm)
        else:
            groups.append([arm])
    several = len(groups) > 1
    bases: dict[str, tuple[str, ...]] = {}
    for group in reversed(groups):
        cap = round(group[0].cost, 2)
        names = ["base"]
        if cap > SAME_COST:
            longer = Arm(f"base-{cap:.2g}x", "base", plain, cap=cap)
            made[longer.name] = longer
            names.append(longer.name)
        if averaging:
            averaged = Arm(f"averaged-{cap:.2g}x" if several else "averaged", "averaged", plain, bases=tuple(names))
            made[averaged.name] = averaged
            names.append(averaged.name)
        bases.update({arm.name: tuple(names) for arm in group})
    for arm in arms:
        if arm.name in made:
            raise CompareError(f"--arms: '{arm.name}' is the name of a base arm; choose another")
    return [*made.values(), *(dataclasses.replace(arm, bases=bases[arm.name]) for arm in arms)]


def _belongs(argument: str, method: str) -> bool:
    """Whether a sharpness argument is one of the method's."""
    if argument == f"{PREFIX}_fraction":
        return METHODS[method].allows_fraction
    # sam_scope and the like go with every method
    return argument in registry.arguments_of(METHODS[method]) or argument not in registry.arguments()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CompareError(f"--arms: {path} cannot be read: {first_line(error)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise CompareError(f"--arms: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise CompareError(f"--arms: {path} is a mapping: a name for each arm, with its arguments (`optim` and others)")
    return {str(name): section for name, section in content.items()}
