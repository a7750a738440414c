"""The sharpness arguments of a training run, and transformers' TrainingArguments with them.

Hyper-parameters are defined by the methods (``methods/*.py``: default, help, valid values); this module gives each its
name on the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing
from typing import Any

import transformers
from transformers.training_args import OptimizerNames

from . import explicit, methods
from .engine.deepspeed.config import check_config, read_config
from .engine.scopes import SCOPES
from .methods import METHODS, Method
from .sharing import config

_STOCK_DEFAULT = next(f.default for f in dataclasses.fields(transformers.TrainingArguments) if f.name == "optim")
_STOCK_NAMES = [name.value for name in OptimizerNames]

HYPERPARAMETERS = {
    "sam_rho": (methods.SAM, "rho"),
    "sam_adaptive": (methods.SAM, "adaptive"),
    "sam_steps": (methods.SAM, "steps"),
    "wsam_mode": (methods.WSAM, "mode"),
    "wsam_gamma": (methods.WSAM, "gamma"),
    "xsam_rho_max": (methods.XSAM, "rho_max"),
    "xsam_alpha": (methods.XSAM, "alpha"),
    "xsam_alpha_max": (methods.XSAM, "alpha_max"),
    "xsam_alpha_points": (methods.XSAM, "alpha_points"),
    "xsam_refresh": (methods.XSAM, "refresh"),
}
"""Argument -> the method that defines the hyper-parameter, and its name there."""


def _kinds_of_number(cls: type, name: str) -> list[type]:
    hint = typing.get_type_hints(cls)[name]
    return [kind for kind in (int, float) if kind in (hint, *typing.get_args(hint))]


_NUMBERS = {argument: _kinds_of_number(cls, name) for argument, (cls, name) in HYPERPARAMETERS.items()}
"""Argument -> the kinds of number that it may be."""


def _hyperparameter(argument: str) -> Any:
    cls, name = HYPERPARAMETERS[argument]
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    metadata = {"help": field.metadata["help"], **explicit.MARK}
    if field.metadata["choices"]:
        metadata["choices"] = list(field.metadata["choices"])
    return dataclasses.field(default=field.default, metadata=metadata)


@dataclasses.dataclass
class _SharpnessArguments:
    """What ``SharpnessArguments`` and this package's TrainingArguments have in common, which is all of it.

    A base of its own: under `hf-sharpness run` the stock base of a class into which somebody mixes SharpnessArguments
    is this package's TrainingArguments. If that derived from SharpnessArguments, there would be no order of the bases.
    """

    optim: str = dataclasses.field(
        default=_STOCK_DEFAULT,
        metadata={
            "help": "The optimizer: `sam` (arXiv 2010.01412), `wsam` (2305.15817) or `xsam` (2603.10048) for "
            "sharpness-aware steps around `base_optim`, or any of transformers' own without them.",
            "choices": [*METHODS, *_STOCK_NAMES],
            **explicit.MARK,
        },
    )
    base_optim: str = dataclasses.field(
        default=_STOCK_DEFAULT,
        metadata={
            "help": "With optim sam, wsam or xsam: the optimizer that takes the step, any name that transformers' own "
            "`optim` accepts; `optim_args` goes to it.",
            "choices": _STOCK_NAMES,
            **explicit.MARK,
        },
    )
    sam_rho: float = _hyperparameter("sam_rho")
    sam_adaptive: bool = _hyperparameter("sam_adaptive")
    sam_steps: int = _hyperparameter("sam_steps")
    sam_scope: str = dataclasses.field(
        default="global",
        metadata={
            "help": "Whose gradient makes the perturbation: "
            + "; ".join(f"`{name}`: {meaning}" for name, meaning in SCOPES.items())
            + ". XSAM is defined for `global` only.",
            "choices": list(SCOPES),
            **explicit.MARK,
        },
    )
    wsam_mode: str = _hyperparameter("wsam_mode")
    wsam_gamma: float | None = _hyperparameter("wsam_gamma")
    xsam_rho_max: float | None = _hyperparameter("xsam_rho_max")
    xsam_alpha: float | None = _hyperparameter("xsam_alpha")
    xsam_alpha_max: float = _hyperparameter("xsam_alpha_max")
    xsam_alpha_points: int = _hyperparameter("xsam_alpha_points")
    xsam_refresh: str = _hyperparameter("xsam_refresh")
    sharpness_config: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Take the arguments above from the `sharpness_config.json` that a model was saved with: a repo on "
            "the Hub (`user/repo` or `user/repo@revision`), a local folder or a file. Those given beside it win.",
        },
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        explicit.note(self, args, kwargs)
        return self

    def __post_init__(self) -> None:
        given = explicit.settle(self, [f.name for f in dataclasses.fields(_SharpnessArguments)])
        if self.sharpness_config is not None:
            config.fill(self, given)
        self.optim, self.base_optim = _plain_name(self.optim), _plain_name(self.base_optim)
        self.check_sharpness()
        parent = getattr(super(), "__post_init__", None)
        if parent is None:
            return
        if not self.uses_sharpness:
            parent()
            return
        # transformers turns `optim` into an enum of its own names: show it the base, and keep what the user chose.
        chosen, self.optim = self.optim, self.base_optim
        try:
            parent()
        finally:
            self.optim = chosen

    @property
    def uses_sharpness(self) -> bool:
        """Whether ``optim`` names a sharpness-aware method."""
        return self.optim in METHODS

    def check_sharpness(self) -> None:
        """Raise a ValueError for the first sharpness argument that is not valid."""
        # From the command line, a hyper-parameter search, and YAML (`1e-1`), a number comes as text.
        for argument in HYPERPARAMETERS:
            setattr(self, argument, _number(argument, getattr(self, argument)))
        if self.optim not in METHODS and self.optim not in _STOCK_NAMES:
            raise ValueError(
                f"optim={self.optim!r} is not known: must be one of {', '.join(METHODS)}, or one of transformers' own "
                f"({', '.join(_STOCK_NAMES)})"
            )
        if self.base_optim not in _STOCK_NAMES:
            remedy = f"choose the method with optim={self.base_optim!r}; " if self.base_optim in METHODS else ""
            raise ValueError(
                f"base_optim={self.base_optim!r} is not known: {remedy}must be one of {', '.join(_STOCK_NAMES)}"
            )
        for argument, (cls, name) in HYPERPARAMETERS.items():
            methods.check_hyperparameters(cls, {name: getattr(self, argument)}, named=lambda _, a=argument: a)
        if self.sam_scope not in SCOPES:
            raise ValueError(f"sam_scope={self.sam_scope!r} is not valid: must be one of {', '.join(SCOPES)}")
        if self.uses_sharpness:
            self._check_combinations()

    def _check_combinations(self) -> None:
        scopes = METHODS[self.optim].scopes
        if self.sam_scope not in scopes:
            raise ValueError(
                f"sam_scope={self.sam_scope!r} is not defined for optim={self.optim!r}: use sam_scope={scopes[0]!r}"
            )
        if self.base_optim.endswith("layerwise") or "lomo" in self.base_optim:
            raise ValueError(
                f"base_optim={self.base_optim!r} steps inside the backward pass, before a sharpness-aware gradient "
                "exists: use an optimizer that steps after it, such as base_optim='adamw_torch' or 'galore_adamw'"
            )
        if self.base_optim.startswith("schedule_free") and self.optim == "wsam" and self.wsam_mode == "decoupled":
            raise ValueError(
                f"wsam_mode='decoupled' does not fit base_optim={self.base_optim!r}, which keeps the weights in a "
                "second form of its own that the term would not move: use wsam_mode='coupled'"
            )
        deepspeed = read_config(getattr(self, "deepspeed", None))
        if deepspeed is not None:
            check_config(deepspeed)
        if self.sam_scope != "global" and (getattr(self, "deepspeed", None) or _accelerate_uses_deepspeed()):
            raise ValueError(
                f"sam_scope={self.sam_scope!r} does not run under DeepSpeed, whose ranks hold parts of the gradient: "
                "use sam_scope='global' (FSDP2 has that one too), or DistributedDataParallel without DeepSpeed"
            )

    def method(self) -> Method | None:
        """The method that ``optim`` names, with its hyper-parameters; None for one of transformers' optimizers."""
        if not self.uses_sharpness:
            return None
        cls = METHODS[self.optim]
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: getattr(self, arg) for arg, (_, name) in HYPERPARAMETERS.items() if name in known})

    @classmethod
    def shared_types(cls) -> dict[str, Any]:
        """What ``sharpness_config.json`` can set: name and type.

        The type that a method declares says more than the argument's, which HfArgumentParser must understand.
        """
        hints = typing.get_type_hints(_SharpnessArguments)
        declared = {argument: typing.get_type_hints(owner)[name] for argument, (owner, name) in HYPERPARAMETERS.items()}
        return {name: declared.get(name, hints[name]) for name in SHARED}

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **arguments: Any,
    ) -> Any:
        """Load the sharpness arguments that a model was saved with.

        Args:
            name: a local folder or ``sharpness_config.json``, or a repo on the Hub: ``user/repo``,
                ``user/repo@revision``.
            revision: branch, tag or commit of the repo. Default None: its main branch.
            token: for a private or gated repo. Default None: that of ``hf auth login`` or HF_TOKEN.
            cache_dir: where downloads are kept. Default None: huggingface_hub's cache.
            local_files_only: read the cache, never the network. Default False.
            force_download: download again what the cache holds. Default False.
            arguments: further arguments of the class, such as ``output_dir``; they override the loaded ones.

        Raises:
            ValueError: the name or the file is not valid; names file, argument, value and remedy.
            OSError: there is no such file or repo, or no access to it.
        """
        loaded = config.load(
            SharpnessArguments,
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls(**{**loaded, **arguments})

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any) -> Any:
        """Write ``sharpness_config.json``, from which ``from_pretrained`` and ``--sharpness_config`` read.

        Args:
            save_directory: the folder, made if it does not exist.
            push_to_hub: also upload the file. Default False.
            options: with ``push_to_hub``, those of ``push_to_hub``; ``repo_id`` is by default the folder's name.

        Returns:
            The file, or the commit with ``push_to_hub``.

        Raises:
            ValueError: an argument is not valid.
            OSError: the file cannot be written or uploaded.
        """
        path = config.save(self, save_directory)
        if not push_to_hub:
            return path
        return config.push(self, options.pop("repo_id", None) or path.resolve().parent.name, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload ``sharpness_config.json`` to a model repo, which is made if it does not exist.

        An instance of TrainingArguments has its own field of this name: there use ``save_pretrained(folder,
        push_to_hub=True, repo_id=...)``.

        Args:
            repo_id: ``user/repo``.
            options: ``commit_message`` (str), ``private`` (bool; default None: the account's default), ``token``
                (default None: that of ``hf auth login`` or HF_TOKEN), ``revision`` (default None: the main branch),
                ``create_pr`` (bool; default False).

        Returns:
            huggingface_hub's CommitInfo.

        Raises:
            ValueError: an argument is not valid.
            OSError: the Hub cannot be reached, or refuses.
        """
        return config.push(self, repo_id, **options)

    def set_optimizer(self, name: str | OptimizerNames = "adamw_torch", *args: Any, **kwargs: Any) -> Any:
        """transformers' ``set_optimizer``, which also takes sam, wsam and xsam (then ``base_optim`` takes the step)."""
        name = _plain_name(name)
        if name in METHODS:
            super().set_optimizer(self.base_optim, *args, **kwargs)
            self.optim = name
        else:
            super().set_optimizer(name, *args, **kwargs)
        self.check_sharpness()
        return self


@dataclasses.dataclass
class SharpnessArguments(_SharpnessArguments):
    """The arguments that choose and tune a sharpness-aware method. Mix it into any dataclass of training arguments:

        @dataclass
        class MyArguments(SharpnessArguments, SFTConfig): ...

    Raises:
        ValueError: an argument is not valid, or arguments make no sense together; names argument, value and remedy.
    """


@dataclasses.dataclass
class TrainingArguments(_SharpnessArguments, transformers.TrainingArguments):
    """transformers.TrainingArguments with the sharpness arguments; nothing else differs."""


@dataclasses.dataclass
class Seq2SeqTrainingArguments(TrainingArguments, transformers.Seq2SeqTrainingArguments):
    """transformers.Seq2SeqTrainingArguments with the sharpness arguments; nothing else differs."""


SHARED = tuple(f.name for f in dataclasses.fields(_SharpnessArguments) if f.name != "sharpness_config")
"""What is shared with a model in ``sharpness_config.json``."""


def _number(argument: str, value: Any) -> Any:
    """The number that a text stands for, where the argument is one; anything else as it is."""
    if isinstance(value, str):
        for kind in _NUMBERS[argument]:
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _plain_name(name: Any) -> Any:
    return name.value if isinstance(name, OptimizerNames) else name


def _accelerate_uses_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes", "on", "y", "t")
