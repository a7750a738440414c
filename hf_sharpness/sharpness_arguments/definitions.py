"""What the sharpness arguments are, by the registered methods: names, types, defaults, meanings."""

from __future__ import annotations

import dataclasses
from typing import Any

import transformers
from transformers.training_args import OptimizerNames

from ..methods import METHODS, Options, hyperparameters
from ..methods.hyperparameters import Hyperparameter
from ..methods.options import PREFIX, SCOPES
from ..methods.registry import arguments, arguments_of

STOCK_DEFAULT: Any = next(f.default for f in dataclasses.fields(transformers.TrainingArguments) if f.name == "optim")
STOCK_NAMES = [name.value for name in OptimizerNames]


def hyperparameter_arguments() -> dict[str, Hyperparameter]:
    """The arguments that are hyper-parameters of a method, or options of every method's steps."""
    options = {h.argument: h for h in hyperparameters(Options, PREFIX).values()}
    return {**arguments(), **options}


def shared_arguments() -> tuple[str, ...]:
    """The arguments that say how a model is trained, and can be shared with it: all but ``sharpness_config``."""
    return ("optim", "base_optim", *hyperparameter_arguments())


def defaults(optim: Any) -> dict[str, Any]:
    """The default of every argument.

    Args:
        optim: the method that is chosen, whose defaults go before those of the method that it derives from; or another
            optimizer, or None.
    """
    own = arguments_of(METHODS[optim]) if optim in METHODS else {}
    hyper = {name: own.get(name, h).default for name, h in hyperparameter_arguments().items()}
    return {"optim": STOCK_DEFAULT, "base_optim": STOCK_DEFAULT, **hyper, "sharpness_config": None}


def descriptions() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every argument, in words."""
    return [(name, *text) for name, (_, text, _) in definitions().items()]


def definitions() -> dict[str, tuple[Any, tuple[str, str], Any]]:
    """Of every argument: type; default and meaning in words; choices."""
    papers = ", ".join(f"`{name}`" + (f" (arXiv {cls.paper})" if cls.paper else "") for name, cls in METHODS.items())
    optim = f"The optimizer: {papers} for sharpness-aware steps around `base_optim`, or any of transformers' own."
    base_optim = (
        "With a sharpness-aware `optim`: the optimizer that takes the step, any name that transformers' own `optim` "
        "accepts; `optim_args` goes to it."
    )
    sharpness_config = (
        "Take the arguments above from the `sharpness_config.json` that a model was saved with: a repo on the Hub "
        "(`user/repo` or `user/repo@revision`), a local folder or a file. Those given beside it win."
    )
    return {
        "optim": (str, (STOCK_DEFAULT, optim), [*METHODS, *STOCK_NAMES]),
        "base_optim": (str, (STOCK_DEFAULT, base_optim), STOCK_NAMES),
        **{
            name: (_argument_type(h), (_default_in_words(name, h), _help(name, h)), h.choices)
            for name, h in hyperparameter_arguments().items()
        },
        "sharpness_config": (str | None, ("None", sharpness_config), None),
    }


def _argument_type(hyperparameter: Hyperparameter) -> Any:
    """The type of the argument: HfArgumentParser knows no more than one beside None."""
    return str if len(hyperparameter.kinds) > 1 else hyperparameter.type


def _help(name: str, hyperparameter: Hyperparameter) -> str:
    if name == f"{PREFIX}_fraction":
        return f"{hyperparameter.help} For {', '.join(n for n, cls in METHODS.items() if cls.allows_fraction)}."
    if name != f"{PREFIX}_scope":
        return hyperparameter.help
    by_scope = {scope: [name for name, cls in METHODS.items() if scope in cls.scopes] for scope in SCOPES}
    defined = "; ".join(f"`{scope}` for {', '.join(names)}" for scope, names in by_scope.items())
    return f"{hyperparameter.help} Defined: {defined}."


def _default_in_words(name: str, hyperparameter: Hyperparameter) -> str:
    """The default in words, with those of methods that have another."""
    others = {
        method: own[name].default
        for method, cls in METHODS.items()
        if name in (own := arguments_of(cls)) and own[name].default != hyperparameter.default
    }
    return "; ".join([str(hyperparameter.default), *(f"{method}: {default}" for method, default in others.items())])
