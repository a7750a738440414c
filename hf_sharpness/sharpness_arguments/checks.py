"""What cannot work, refused with a remedy: of training arguments, and of a method's names among them."""

from __future__ import annotations

import os
from typing import Any

import transformers

from ..engine.deepspeed.config import check_config, read_config
from ..engine.fraction import check_fraction, size_of_part
from ..engine.preconditioner import has_known_preconditioner, refusal
from ..engine.targets import DEEPSPEED
from ..methods import METHODS, Method, Options, hyperparameters, registry
from ..methods.options import PREFIX
from ..sharing.values import closest
from .definitions import STOCK_NAMES, hyperparameter_arguments
from .fields import ArgumentFields


def check_arguments(arguments: Any) -> None:
    """Raise a ValueError for the first sharpness argument that is not valid, or makes no sense with others."""
    if arguments.optim not in METHODS and arguments.optim not in STOCK_NAMES:
        raise ValueError(
            f"optim={arguments.optim!r} is not known: {_meant(arguments.optim)}must be one of {', '.join(METHODS)}, or "
            f"one of transformers' own ({', '.join(STOCK_NAMES)})"
        )
    if arguments.base_optim not in STOCK_NAMES:
        is_method = arguments.base_optim in METHODS
        remedy = (
            f"choose the method with optim={arguments.base_optim!r}; " if is_method else _meant(arguments.base_optim)
        )
        raise ValueError(
            f"base_optim={arguments.base_optim!r} is not known: {remedy}must be one of {', '.join(STOCK_NAMES)}"
        )
    own = registry.arguments_of(METHODS[arguments.optim]) if arguments.uses_sharpness else {}
    for argument, hyperparameter in {**hyperparameter_arguments(), **own}.items():
        hyperparameter.check(getattr(arguments, argument), argument)
    if arguments.uses_sharpness:
        _check_combinations(arguments)


def _meant(name: Any) -> str:
    """What a name that is not known may stand for."""
    text = str(name).lower()
    if text == "asam":
        return "ASAM is optim='sam' with sam_adaptive=True (its sam_rho is ten times as large); "
    names = [*METHODS, *STOCK_NAMES]
    close = next((name for name in names if name.startswith(text)), None) or closest(text, names)
    return f"did you mean {close!r}? It " if close else ""


def _check_optim_args(arguments: Any) -> None:
    """A hyper-parameter among the base optimizer's arguments, where transformers would leave it aside in silence."""
    text = getattr(arguments, "optim_args", None)
    if not isinstance(text, str):
        return
    own = hyperparameter_arguments()
    for name in (part.partition("=")[0].strip() for part in text.split(",")):
        argument = f"{PREFIX}_{name}" if name in _NO_OPTIMIZERS else name
        if argument in own:
            raise ValueError(
                f"optim_args={text!r} goes to base_optim={arguments.base_optim!r}, which has no {name}: give it as an "
                f"argument of its own, {argument}"
            )


_NO_OPTIMIZERS = ("rho", "adaptive")
"""What SAM's implementations call their arguments, where no optimizer of transformers has one of that name."""


def _check_combinations(arguments: Any) -> None:
    _check_optim_args(arguments)
    scopes = METHODS[arguments.optim].scopes
    if arguments.sam_scope not in scopes:
        raise ValueError(
            f"sam_scope={arguments.sam_scope!r} is not defined for optim={arguments.optim!r}: use "
            f"sam_scope={scopes[0]!r}"
        )
    if arguments.base_optim.endswith("layerwise") or "lomo" in arguments.base_optim:
        raise ValueError(
            f"base_optim={arguments.base_optim!r} steps inside the backward pass, before a sharpness-aware gradient "
            "exists: use an optimizer that steps after it, such as base_optim='adamw_torch' or 'galore_adamw'"
        )
    method = arguments.method().resolved(arguments.base_kind())
    named = {h.name: argument for argument, h in registry.arguments_of(type(method)).items()}
    setting, remedy = method.after_step_setting(named), method.after_step_remedy(named)
    arguments.step_options().check_together(method, f"{PREFIX}_")
    under_deepspeed = bool(getattr(arguments, "deepspeed", None)) or _accelerate_uses_deepspeed()
    check_fraction(method, arguments.sam_fraction, arguments.sam_scope, f"{PREFIX}_", deepspeed=under_deepspeed)
    if arguments.sam_target_modules is not None and under_deepspeed:
        raise ValueError(DEEPSPEED.format(prefix=f"{PREFIX}_", value=arguments.sam_target_modules))
    if arguments.sam_fraction < 1 and not method.is_plain and getattr(arguments, "gradient_accumulation_steps", 2) == 1:
        size = arguments.per_device_train_batch_size
        if size_of_part(arguments.sam_fraction, size) == size:
            raise ValueError(
                f"sam_fraction={arguments.sam_fraction!r} takes the first of a batch's {size} examples, and rounds to "
                "all of them: use a larger per_device_train_batch_size, gradient_accumulation_steps (it then takes the "
                "first micro-batches), or sam_fraction=1"
            )
    if arguments.base_optim.startswith("schedule_free") and method.adds_after_step:
        raise ValueError(
            f"{setting} does not fit base_optim={arguments.base_optim!r}, which keeps the weights in a second form of "
            f"its own that the term would not move: use {remedy}"
        )
    if method.preconditions_term and not has_known_preconditioner(arguments.base_optim):
        raise ValueError(refusal(f"base_optim={arguments.base_optim!r}", setting, remedy))
    deepspeed = read_config(getattr(arguments, "deepspeed", None))
    if deepspeed is not None:
        check_config(deepspeed)
    if arguments.sam_scope != "global" and under_deepspeed:
        raise ValueError(
            f"sam_scope={arguments.sam_scope!r} does not run under DeepSpeed, whose ranks hold parts of the gradient: "
            "use sam_scope='global' (FSDP2 has that one too), or DistributedDataParallel without DeepSpeed"
        )


def _accelerate_uses_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes", "on", "y", "t")


def check_names(cls: type[Method]) -> None:
    """Raise a ValueError where the name of a method, or of an argument of its, is another thing's already."""
    if cls.name in STOCK_NAMES:
        raise ValueError(f"register({cls.__name__}): {cls.name!r} is an optimizer of transformers: choose another name")
    own = registry.arguments_of(cls)
    reserved = {"sharpness_config", *(option.argument for option in hyperparameters(Options, PREFIX).values())}
    for argument in own:
        owners = [transformers.Seq2SeqTrainingArguments]
        if argument not in ArgumentFields.__dataclass_fields__:  # else it is what a subclass may change the default of
            owners += _below(ArgumentFields)
        owner = next((o for o in owners if hasattr(o, argument) or argument in o.__dataclass_fields__), None)
        if owner is not None or argument in reserved:
            raise ValueError(
                f"register({cls.__name__}): {(owner or ArgumentFields).__name__} has an argument or attribute "
                f"{argument} already: give the method or the hyper-parameter another name"
            )


def _below(cls: Any) -> list[Any]:
    return [found for subclass in cls.__subclasses__() for found in (subclass, *_below(subclass))]
