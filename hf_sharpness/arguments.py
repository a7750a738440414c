"""The sharpness arguments of a training run, and transformers' TrainingArguments with them.

The methods define their hyper-parameters (``methods/*.py``), ``sharpness_arguments`` makes fields of them and checks
them; this module fills in what was not given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import transformers
from transformers.training_args import OptimizerNames

from .engine.optimizers import kind_named
from .methods import METHODS, BaseKind, Method, Options, hyperparameters, registry
from .methods.options import PREFIX
from .sharing import config
from .sharpness_arguments.checks import check_arguments, check_names
from .sharpness_arguments.definitions import STOCK_NAMES, defaults, hyperparameter_arguments, shared_arguments
from .sharpness_arguments.fields import ArgumentFields, make_fields
from .sharpness_arguments.other_trainers import look_out


class _SharpnessArguments(ArgumentFields):
    """What ``SharpnessArguments`` and this package's TrainingArguments have in common, which is all of it.

    A base of its own: under `hf-sharpness run` the stock base of a class into which somebody mixes SharpnessArguments
    is this package's TrainingArguments. If that derived from SharpnessArguments, there would be no order of the bases.
    """

    def __post_init__(self) -> None:
        fields = type(self).__dataclass_fields__
        values = {name: getattr(self, name) for name in defaults(None)}
        # A subclass may have a default of its own in the place of None.
        given = {name for name, value in values.items() if value is not None and value != fields[name].default}
        self.__dict__["_given"] = {name for name, value in values.items() if value is not None}
        self._make_plain()
        if self.sharpness_config is not None:
            config.fill(self, given)
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

    def __setattr__(self, name: str, value: Any) -> None:
        """As ever; what is set later, as by a hyper-parameter search, is given, and no default takes its place."""
        super().__setattr__(name, value)
        given: set[str] | None = self.__dict__.get("_given")
        if given is not None and name in ArgumentFields.__dataclass_fields__:
            (given.discard if value is None else given.add)(name)

    def _fill_in_defaults(self) -> None:
        """Put the chosen method's default in the place of every argument that was not given."""
        # What was pickled by an earlier version says nothing of it: all that it holds was given.
        given = self.__dict__.setdefault("_given", set(self.__dict__))
        self.__dict__.update({name: default for name, default in defaults(self.optim).items() if name not in given})

    def _make_plain(self) -> None:
        """Names of optimizers as text, and texts as the numbers that they stand for."""
        values = self.__dict__
        values.update({name: _plain_name(values[name]) for name in ("optim", "base_optim") if name in values})
        # From the command line, a hyper-parameter search, and YAML (`1e-1`), a number comes as text.
        for name, hyperparameter in hyperparameter_arguments().items():
            if name in values:
                values[name] = _number(hyperparameter.kinds, values[name])

    @property
    def uses_sharpness(self) -> bool:
        """Whether ``optim`` names a sharpness-aware method."""
        return self.optim in METHODS

    def check_sharpness(self) -> None:
        """Put defaults where nothing was given, and raise a ValueError for the first argument that is not valid."""
        self._make_plain()
        self._fill_in_defaults()
        check_arguments(self)

    def method(self) -> Method | None:
        """The method that ``optim`` names, with its hyper-parameters; None for one of transformers' optimizers."""
        if not self.uses_sharpness:
            return None
        return _made(METHODS[self.optim], self)

    def base_kind(self) -> BaseKind:
        """What kind of base optimizer ``base_optim`` and transformers' ``optim_args`` name."""
        return kind_named(self.base_optim, getattr(self, "optim_args", None))

    def step_options(self) -> Options:
        """The options of every method's steps."""
        return _made(Options, self, PREFIX)

    def shared_values(self) -> dict[str, Any]:
        """What ``sharpness_config.json`` says of these arguments: of hyper-parameters those of the chosen method."""
        own = registry.arguments_of(METHODS[self.optim]) if self.uses_sharpness else {}
        others = registry.arguments().keys() - own.keys()
        return {name: _plain_name(getattr(self, name)) for name in shared_arguments() if name not in others}

    @classmethod
    def shared_types(cls) -> dict[str, Any]:
        """What ``sharpness_config.json`` can set: name and type.

        The type that a method declares says more than the argument's, which HfArgumentParser must understand.
        """
        declared = {name: hyperparameter.type for name, hyperparameter in hyperparameter_arguments().items()}
        return {name: declared.get(name, str) for name in shared_arguments()}

    @staticmethod
    def optimizer_names() -> list[str]:
        """What ``optim`` can be: the methods, and transformers' own optimizers."""
        return [*METHODS, *STOCK_NAMES]

    @staticmethod
    def argument_defaults(optim: Any) -> dict[str, Any]:
        """The default of every argument where ``optim`` is this."""
        return defaults(optim)

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

    def _stock(self) -> Any:
        """The methods of the class that this one is mixed into."""
        return super()

    def get_process_log_level(self) -> int:
        """transformers' own, which every Trainer calls as it is made: the moment to look out for the wrong ones."""
        if self.uses_sharpness:
            look_out(self.optim)
        return self._stock().get_process_log_level()

    def set_optimizer(self, name: str | OptimizerNames = "adamw_torch", *args: Any, **kwargs: Any) -> Any:
        """transformers' ``set_optimizer``, which also takes sharpness-aware methods (``base_optim`` takes the step)."""
        name = _plain_name(name)
        if name in METHODS:
            self._stock().set_optimizer(self.base_optim, *args, **kwargs)
            self.optim = name
        else:
            self._stock().set_optimizer(name, *args, **kwargs)
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

    if TYPE_CHECKING:
        push_to_hub: bool = False  # type: ignore[assignment]  # transformers' field in the place of the method


@dataclasses.dataclass
class Seq2SeqTrainingArguments(TrainingArguments, transformers.Seq2SeqTrainingArguments):
    """transformers.Seq2SeqTrainingArguments with the sharpness arguments; nothing else differs."""


def _made(cls: Any, arguments: Any, prefix: str | None = None) -> Any:
    """A method, or the options, with the hyper-parameters that the arguments hold."""
    values = {name: getattr(arguments, h.argument) for name, h in hyperparameters(cls, prefix).items()}
    return cls(**{name: value for name, value in values.items() if value is not None})


def _number(kinds: tuple[type, ...], value: Any) -> Any:
    """The number that a text stands for, where the argument is one; anything else as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            if kind in kinds:
                with contextlib.suppress(ValueError):
                    return kind(value)
    return value


def _plain_name(name: Any) -> Any:
    return name.value if isinstance(name, OptimizerNames) else name


def __getattr__(name: str) -> Any:
    """SHARED and HYPERPARAMETERS: what is shared in a config; argument -> hyper-parameter of a method."""
    if name == "SHARED":
        return shared_arguments()
    if name == "HYPERPARAMETERS":
        return registry.arguments()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


registry.subscribe(registry.Listener(check_names, make_fields))
registry.load_entry_points()  # last: the module of a method may import this one
