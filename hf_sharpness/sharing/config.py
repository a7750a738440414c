"""The sharpness arguments as a file that is saved with a model, and shared in a folder or on the Hub.

A model saved here comes with ``sharpness_config.json``: the sharpness arguments as they were given (not as a method
resolves them: a default that depends on another argument stays so), all of the chosen method's written out, so that a
later change of a default does not change what the file means; what they amount to stands beside them. An optimizer
handed to the Trainer as an object is not part of it.

Whoever wrote such a file need not be trusted: it can set the sharpness arguments and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import CommitInfo, HfApi
from packaging.version import InvalidVersion, Version

from .. import __version__
from ..engine.optimizers import kind_named
from ..methods import METHODS, hyperparameters, registry
from .arguments import Arguments
from .fetch import MAX_BYTES, fetch, read
from .values import described, fits, nearest, short

CONFIG_NAME = "sharpness_config.json"
FORMAT_VERSION = 1
"""Of the config. A reader refuses a higher one."""

_ABOUT = ("format_version", "hf_sharpness_version", "paper", "package")

_EFFECTIVE = "effective"
"""For whoever looks at the file: what arguments left to the method (`auto`, null) amount to. Reading skips it."""

log = logging.getLogger(__name__)


def config_text(arguments: Arguments) -> str:
    """The content of ``sharpness_config.json``.

    Raises:
        ValueError: an argument is not valid.
    """
    arguments.check_sharpness()
    about: dict[str, Any] = {"format_version": FORMAT_VERSION, "hf_sharpness_version": __version__, "paper": None}
    if arguments.uses_sharpness:
        method = METHODS[arguments.optim]
        about["paper"] = method.paper or None
        if package := registry.package_of(method.name):
            about["package"] = package
        given: Any = arguments.method()
        meant = given.resolved(arguments.base_kind())
        names = {argument: h.name for argument, h in registry.arguments_of(method).items()}
        resolved = {
            a: getattr(meant, name) for a, name in names.items() if getattr(meant, name) != getattr(given, name)
        }
        if resolved:
            about[_EFFECTIVE] = resolved
    return json.dumps({**about, **arguments.shared_values()}, indent=2, allow_nan=False) + "\n"


def save(arguments: Arguments, folder: str | os.PathLike[str]) -> Path:
    """Write ``sharpness_config.json`` into a folder, which is made if need be. Returns the file.

    Raises:
        ValueError: an argument is not valid.
        OSError: the file cannot be written.
    """
    path = Path(folder, CONFIG_NAME)
    text = config_text(arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def remove_stale(kind: type[Arguments], folder: str | os.PathLike[str]) -> None:
    """Remove the ``sharpness_config.json`` of an earlier run: the model saved in the folder now was not trained so.

    A file that is not valid, or names none of this package's methods, is left alone.
    """
    path = Path(folder, CONFIG_NAME)
    if not path.is_file():
        return
    with contextlib.suppress(ValueError, OSError):
        if parse_config(kind, read(path), str(path)).get("optim") in METHODS:
            path.unlink()
            log.info("%s is of an earlier run and was removed: this model was trained without it", path)


def push(
    arguments: Arguments,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload ``sharpness_config.json`` to a model repo, which is made if need be (see ``push_to_hub``)."""
    content = config_text(arguments).encode()
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return api.upload_file(
        path_or_fileobj=content,
        path_in_repo=CONFIG_NAME,
        repo_id=repo_id,
        commit_message=commit_message or f"Upload {CONFIG_NAME}",
        revision=revision,
        create_pr=create_pr,
    )


def load(kind: type[Arguments], name: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The sharpness arguments of a config.

    Args:
        kind: the class of arguments that the config is for.
        name: a file, a folder with ``sharpness_config.json``, or a repo on the Hub: ``user/repo``,
            ``user/repo@revision``.
        options: as in ``fetch``.

    Raises:
        ValueError: the name or the content is not valid.
        OSError: there is no such file.
    """
    path, origin = fetch(name, CONFIG_NAME, **options)
    return parse_config(kind, read(path), origin)


def fill(arguments: Arguments, given: set[str]) -> None:
    """Set the arguments that were not given from the config that ``arguments.sharpness_config`` names."""
    name = str(arguments.sharpness_config)
    values = load(type(arguments), name, token=getattr(arguments, "hub_token", None))
    free = {key: value for key, value in values.items() if key not in given}
    _refuse_new_meanings(arguments, values, free, given)
    if values and not free:
        log.warning("sharpness_config=%r changes nothing: all of its arguments were given explicitly as well", name)
    for key, value in free.items():
        setattr(arguments, key, value)
    log.info("sharpness_config=%r: %s", name, free)
    # The values are in their places: a copy made of them (as by to_dict) must not ask the Hub again.
    arguments.sharpness_config = None


def _refuse_new_meanings(
    arguments: Arguments, values: Mapping[str, Any], free: Mapping[str, Any], given: set[str]
) -> None:
    """Raise a ValueError where what was given changes the meaning of a number of the config.

    Args:
        arguments: those that were given, and defaults.
        values: the config's.
        free: of these, those that apply.
        given: names of arguments.
    """
    before = {**arguments.argument_defaults(values.get("optim")), **values}
    after = {**before, **{name: getattr(arguments, name) for name in given}}
    settings = getattr(arguments, "optim_args", None)
    earlier, now = _meanings(before, settings), _meanings(after, settings)
    for argument in free.keys() & earlier.keys() & now.keys():
        if free[argument] is not None and earlier[argument] != now[argument]:
            raise ValueError(
                f"sharpness_config={arguments.sharpness_config!r}: its {argument}={free[argument]} was chosen for "
                f"{earlier[argument]}, and what was given makes it {now[argument]}: give {argument} too"
            )


def _meanings(values: Mapping[str, Any], optim_args: str | None) -> dict[str, str]:
    """What arguments mean that depend on others, by name, where these choose a method."""
    method = METHODS.get(values["optim"])
    if method is None:
        return {}
    own = hyperparameters(method)
    settings = {name: values[hyperparameter.argument] for name, hyperparameter in own.items()}
    meanings = method.meanings(settings, kind_named(values["base_optim"], optim_args))
    return {own[name].argument: meaning for name, meaning in meanings.items()}


def parse_config(kind: type[Arguments], content: bytes, origin: str) -> dict[str, Any]:
    """Read and check a config.

    Args:
        kind: the class of arguments that the config is for; makes one to check the values.
        content: the file's.
        origin: how an error names the file.

    Returns:
        The arguments it sets: names and valid values.

    Raises:
        ValueError: names file, key, value and remedy.
    """

    def refuse(problem: str) -> NoReturn:
        raise ValueError(f"{origin}: {problem}")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in items:
            if key in mapping:
                refuse(f"the key {short(key)} stands twice: remove one")
            mapping[key] = value
        return mapping

    def number(text: str) -> int | float:
        if len(text) > 64 or not math.isfinite(float(text)):
            refuse(f"the number {short(text)} is not valid: too long or too large, write a finite one")
        return int(text) if text.lstrip("-").isdigit() else float(text)

    def constant(text: str) -> NoReturn:
        refuse(f"{text} is not valid: must be a finite number")

    if len(content) > MAX_BYTES:
        refuse(f"is larger than {MAX_BYTES // 1024} KiB, so no sharpness config: remove what does not belong there")
    try:
        config = json.loads(
            content.decode("utf-8-sig"),  # editors on Windows begin a file with a mark
            object_pairs_hook=pairs,
            parse_int=number,
            parse_float=number,
            parse_constant=constant,
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        refuse(f"is not valid JSON ({error}): save it again with SharpnessArguments.save_pretrained")
    except RecursionError:
        refuse("is nested too deeply: a config is one flat mapping")
    if not isinstance(config, dict):
        refuse(f"a sharpness config is a mapping of arguments, not {short(config)}")

    config.pop(_EFFECTIVE, None)
    version = config.get("format_version")
    if type(version) is not int or version < 1:
        refuse(f'format_version={short(version)} is not valid: a config says "format_version": {FORMAT_VERSION}')
    if version > FORMAT_VERSION:
        refuse(
            f"format_version={short(version)} is of a later hf_sharpness than this one ({__version__}), namely "
            f"{short(config.get('hf_sharpness_version'))}: pip install -U hf_sharpness"
        )
    for key in _ABOUT[1:]:
        if not isinstance(config.get(key), str | None):
            refuse(f"{key}={short(config[key])} is not valid: must be a string")
    later = _is_later(config.get("hf_sharpness_version"))
    upgrade = f"the file is of hf_sharpness {short(config.get('hf_sharpness_version'))}: pip install -U hf_sharpness"
    types = kind.shared_types()
    unknown = next((key for key in config if key not in types and key not in _ABOUT), None)
    optim = config.get("optim")
    if unknown is not None and later:
        refuse(f"the key {short(unknown)} is not known to this hf_sharpness ({__version__}): {upgrade}")
    if isinstance(optim, str) and len(optim) <= 100 and optim not in kind.optimizer_names():
        remedy = "a method of another package has to be installed"
        if config.get("package"):
            remedy = f"it comes with the package {short(config['package'])}, says the file: install it if you trust it"
        known = f"must be one of {', '.join(METHODS)}, or transformers' own"
        refuse(f"optim={short(optim)} is not known: {known}; {upgrade if later else remedy}")
    if unknown is not None:
        meant = nearest(unknown, types)
        refuse(f"the key {short(unknown)} is not allowed: {meant}remove it; a config can set {', '.join(types)}")
    values = {key: value for key, value in config.items() if key in types}
    most = registry.most_shared()
    for key, value in values.items():
        if not fits(value, types[key]) or (isinstance(value, str) and len(value) > 100):
            refuse(f"{key}={short(value)} is not valid: must be {described(types[key])}")
        if key in most and value is not None and value > most[key]:
            refuse(f"{key}={value} is too large for a config: must be at most {most[key]}, or be given by yourself")
    try:
        checked = kind(**values)
    except ValueError as error:
        refuse(f"{error}{f' ({upgrade})' if later else ''}")
    return {key: getattr(checked, key) for key in values}


def _is_later(written: str | None) -> bool:
    """Whether a file is of a later version than this one."""
    with contextlib.suppress(InvalidVersion, TypeError):
        return Version(written or "") > Version(__version__)
    return False
