"""Which methods there are: this package's, those of installed packages, and those that a script registers.

    @register
    @dataclasses.dataclass
    class MySAM(SAM):
        name: ClassVar[str] = "mysam"

From here come the choices of ``--optim``, flags and keys, what a shared file may set, logged series and tables.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

from .base import Method
from .hyperparameters import Hyperparameter, hyperparameters

ENTRY_POINTS = "hf_sharpness.methods"
"""The group of entry points by which an installed package brings methods: ``name = module:Class``."""

Registered = TypeVar("Registered", bound=type[Method])

log = logging.getLogger(__name__)

_methods: dict[str, type[Method]] = {}
METHODS: Mapping[str, type[Method]] = MappingProxyType(_methods)
"""The registered methods by name, those registered later included."""

_packages: dict[str, str] = {}
_loaded: set[str] = set()


class Listener(NamedTuple):
    """Somebody who makes something of every method.

    Attributes:
        check: raises a ValueError for a method that cannot be taken up.
        changed: called when the methods are others than before.
    """

    check: Callable[[type[Method]], None]
    changed: Callable[[], None]


_listeners: list[Listener] = []


def register(cls: Registered) -> Registered:
    """Make a method known: ``--optim NAME`` chooses it, and its hyper-parameters are arguments ``NAME_FIELD``.

    To be called before arguments are parsed or made; whether ``TrainingArguments`` has been imported makes no
    difference. A class of the same module and name takes the place of the one before (a notebook's cell, run again).

    Args:
        cls: a subclass of ``Method``, a dataclass.

    Returns:
        The class, so that it serves as a decorator.

    Raises:
        TypeError: it is no such class.
        ValueError: its name, or an argument of its, is taken; or a hyper-parameter cannot be an argument.
    """
    _check_class(cls)
    before = _methods.get(cls.name)
    if before is cls:
        return cls
    if before is not None and _home(before) != _home(cls):
        raise ValueError(f"{_called(cls)}: the name {cls.name!r} is that of {_home(before)}: give it another `name`")
    _check_arguments(cls)
    for listener in _listeners:
        listener.check(cls)
    _methods[cls.name] = cls
    _tell()
    return cls


def unregister(name: str) -> None:
    """Make a method unknown again; nothing happens where there is none of the name."""
    if _methods.pop(name, None) is not None:
        _packages.pop(name, None)
        _tell()


def subscribe(listener: Listener) -> None:
    """Tell somebody of all methods, those registered so far and later.

    Raises:
        ValueError: a method registered so far cannot be taken up; it is not registered any more.
    """
    for name, cls in list(_methods.items()):
        try:
            listener.check(cls)
        except ValueError:
            del _methods[name]
            raise
    _listeners.append(listener)
    listener.changed()


def load_entry_points() -> None:
    """Register the methods of installed packages, once. One that fails is a warning."""
    if "entry points" in _loaded:
        return
    _loaded.add("entry points")
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        known = dict(_methods)
        try:
            loaded = entry_point.load()
            if not isinstance(loaded, ModuleType):  # a module registers its methods by itself
                register(loaded)
        except (Exception, SystemExit) as error:  # whatever happens in somebody else's module
            reason = " ".join(str(error).split())
            log.warning(
                "the method %r of the package %s is not available: %s: %s",
                entry_point.name,
                package,
                type(error).__name__,
                reason,
            )
        _packages.update({name: package for name, cls in _methods.items() if known.get(name) is not cls})


def package_of(name: str) -> str | None:
    """The installed package that brought a method by an entry point, or None."""
    return _packages.get(name)


def arguments() -> dict[str, Hyperparameter]:
    """The hyper-parameters of all methods by the names of their arguments, each as the method has it that says most.

    That is the method which introduces it; those that derive from it may have another default.
    """
    found: dict[str, Hyperparameter] = {}
    for cls in _methods.values():
        for hyperparameter in hyperparameters(cls).values():
            if hyperparameter.argument not in found or hyperparameter.argument.startswith(f"{cls.name}_"):
                found[hyperparameter.argument] = hyperparameter
    return found


def arguments_of(cls: type[Method]) -> dict[str, Hyperparameter]:
    """The hyper-parameters of a method by the names of their arguments."""
    return {hyperparameter.argument: hyperparameter for hyperparameter in hyperparameters(cls).values()}


def radius_of(cls: type[Method]) -> Hyperparameter | None:
    """How far a method perturbs: the first of its ``radii`` with a default. None: it declares none."""
    own = hyperparameters(cls)
    return next((own[name] for name in cls.radii if name in own and own[name].default is not None), None)


def radii() -> dict[str, Hyperparameter]:
    """``radius_of`` all methods by the names of their arguments."""
    found = [radius for cls in _methods.values() if (radius := radius_of(cls)) is not None]
    return {radius.argument: radius for radius in found}


def most_shared() -> dict[str, int]:
    """By argument, the highest value that a file shared by somebody else may set; the command line may set any."""
    return {argument: h.most for argument, h in arguments().items() if h.most is not None}


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """For tables: every form of every method, as its title -> the method's name and hyper-parameters."""
    return {
        title: (name, dict(settings))
        for name, cls in _methods.items()
        for title, settings in (cls.variants or {name.upper(): {}}).items()
    }


def _tell() -> None:
    for listener in _listeners:
        listener.changed()


def _home(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _called(cls: type) -> str:
    return f"register({cls.__name__})"


def _check_class(cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise TypeError(f"register({cls!r}): must be a subclass of hf_sharpness.methods.Method")
    name = getattr(cls, "name", None)
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
        raise ValueError(f"{_called(cls)}: name={name!r} is not valid: must be lower case letters, digits and _")
    inherited = {field.name for field in dataclasses.fields(cls)}
    assigned = {key for key, value in vars(cls).items() if isinstance(value, dataclasses.Field) or key in inherited} | (
        inspect.get_annotations(cls).keys() & inherited
    )
    if "__dataclass_fields__" not in vars(cls) and assigned:
        raise TypeError(
            f"{_called(cls)}: {', '.join(sorted(assigned))} would have no effect: put @dataclasses.dataclass before "
            "the class"
        )


def _check_arguments(cls: type[Method]) -> None:
    own = hyperparameters(cls)
    for field in dataclasses.fields(cls):
        if field.init and field.name not in own:
            raise ValueError(
                f"{_called(cls)}: the field {field.name} is no hyper-parameter: define it by hyperparameter(...), "
                "or make it with field(init=False)"
            )
    for hyperparameter in own.values():
        if not hyperparameter.kinds or not set(hyperparameter.kinds) <= {bool, int, float, str}:
            raise ValueError(
                f"{_called(cls)}: the type of {hyperparameter.name}, {hyperparameter.type!r}, cannot be an argument's: "
                "must be bool, int, float, str or several of them"
            )
        hyperparameter.check(hyperparameter.default, f"{_called(cls)}: the default {hyperparameter.name}")
        if hyperparameter.default is not None and hyperparameter.accepts(None):
            raise ValueError(
                f'{_called(cls)}: {hyperparameter.name} may be None, which stands for "not given" and then for the '
                f"default {hyperparameter.default!r}: make None the default, or choose another value for it"
            )
    for other in _methods.values():
        if other.name == cls.name:
            continue
        for argument in arguments_of(cls).keys() & arguments_of(other).keys():
            if _definers(cls, argument).isdisjoint(_definers(other, argument)):
                raise ValueError(
                    f"{_called(cls)}: the argument {argument} is {other.name}'s already: give the method or the "
                    "hyper-parameter another name"
                )


def _definers(cls: type[Method], argument: str) -> set[type]:
    """The classes that a method has the hyper-parameter of an argument from."""
    name = arguments_of(cls)[argument].name
    return {base for base in cls.__mro__ if name in getattr(base, "__dataclass_fields__", {})}
