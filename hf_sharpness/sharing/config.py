"""The sharpness arguments as a file that is saved with a model, and shared in a folder or on the Hub.

A model saved here comes with ``sharpness_config.json``: the sharpness arguments as they were given (not as a method
resolves them: ``wsam_gamma`` left to its mode's default stays so, and a reader may choose another mode), all of them
written out, so that a later change of a default does not change what the file means. An optimizer handed to the
Trainer as an object is not part of it.

Whoever wrote such a file need not be trusted: it can set the sharpness arguments and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, NoReturn, Protocol

from huggingface_hub import CommitInfo, HfApi

from .. import __version__
from ..engine.optimizers import is_adaptive
from ..methods import METHODS
from .fetch import MAX_BYTES, fetch, read
from .values import described, fits, nearest, short

CONFIG_NAME = "sharpness_config.json"
FORMAT_VERSION = 1
"""Of the config. A reader refuses a higher one."""
MOST = {"sam_steps": 1_000, "xsam_alpha_points": 10_000}
"""A config may not ask for more: these cost a pass over the batch each. The command line may."""

_ABOUT = ("format_version", "hf_sharpness_version", "paper")

log = logging.getLogger(__name__)


class Arguments(Protocol):
    """Training arguments that a config is made from, and made into."""

    optim: Any
    base_optim: Any
    sharpness_config: str | None

    @property
    def uses_sharpness(self) -> bool: ...

    def check_sharpness(self) -> None: ...

    @classmethod
    def shared_types(cls) -> dict[str, Any]:
        """What a config can set: name and type."""


def config_text(arguments: Arguments) -> str:
    """The content of ``sharpness_config.json``.

    Raises:
        ValueError: an argument is not valid.
    """
    arguments.check_sharpness()
    about = {
        "format_version": FORMAT_VERSION,
        "hf_sharpness_version": __version__,
        "paper": METHODS[arguments.optim].paper if arguments.uses_sharpness else None,
    }
    values = {name: getattr(arguments, name) for name in arguments.shared_types()}
    return json.dumps({**about, **values}, indent=2, allow_nan=False) + "\n"


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
    name = arguments.sharpness_config
    values = load(type(arguments), name, token=getattr(arguments, "hub_token", None))
    free = {key: value for key, value in values.items() if key not in given}
    _note_new_meanings(arguments, values, free, given)
    if values and not free:
        log.warning("sharpness_config=%r changes nothing: all of its arguments were given explicitly as well", name)
    for key, value in free.items():
        setattr(arguments, key, value)
    log.info("sharpness_config=%r: %s", name, free)
    # The values are in their places: a copy made of them (as by to_dict) must not ask the Hub again.
    arguments.sharpness_config = None


def _note_new_meanings(arguments: Arguments, values: dict[str, Any], free: dict[str, Any], given: set[str]) -> None:
    """Where what was given changes the meaning of a number of the config: drop WSAM's gamma, warn of rho.

    Args:
        arguments: those that were given, and defaults.
        values: the config's.
        free: of these, those that apply; changed in place.
        given: names of arguments.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(arguments)}
    before = {**defaults, **values}
    after = {**before, **{name: getattr(arguments, name) for name in given}}
    modes = [_wsam_mode(chosen) for chosen in (before, after)]
    if modes[0] != modes[1] and free.get("wsam_gamma") is not None:
        log.warning(
            "sharpness_config=%r: its wsam_gamma=%s was chosen for the %s mode and is not taken over to the %s one, "
            "which has its own default: give wsam_gamma as well to choose it",
            arguments.sharpness_config,
            free.pop("wsam_gamma"),
            *modes,
        )
    if bool(before["sam_adaptive"]) != bool(after["sam_adaptive"]) and "sam_rho" in free:
        log.warning(
            "sharpness_config=%r: sam_adaptive=%s gives its sam_rho=%s another meaning (ASAM wants about 10 times "
            "SAM's value): give sam_rho as well",
            arguments.sharpness_config,
            after["sam_adaptive"],
            before["sam_rho"],
        )


def _wsam_mode(values: dict[str, Any]) -> str:
    """The mode that WSAM has with these arguments."""
    base = str(getattr(values["base_optim"], "value", values["base_optim"]))
    mode = str(values["wsam_mode"])
    return mode if mode != "auto" else "coupled" if is_adaptive(base) else "decoupled"


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

    version = config.get("format_version")
    if type(version) is not int or version < 1:
        refuse(f'format_version={short(version)} is not valid: a config says "format_version": {FORMAT_VERSION}')
    if version > FORMAT_VERSION:
        refuse(
            f"format_version={short(version)} is of a later hf_sharpness than this one ({__version__}), namely "
            f"{short(config.get('hf_sharpness_version'))}: pip install -U hf_sharpness"
        )
    types = kind.shared_types()
    for key in config:
        if key not in types and key not in _ABOUT:
            meant = nearest(key, types)
            refuse(f"the key {short(key)} is not allowed: {meant}remove it; a config can set {', '.join(types)}")
    for key in _ABOUT[1:]:
        if not isinstance(config.get(key), str | None):
            refuse(f"{key}={short(config[key])} is not valid: must be a string")
    values = {key: value for key, value in config.items() if key in types}
    for key, value in values.items():
        if not fits(value, types[key]) or (isinstance(value, str) and len(value) > 100):
            refuse(f"{key}={short(value)} is not valid: must be {described(types[key])}")
        if key in MOST and value > MOST[key]:
            refuse(f"{key}={value} is too large for a config: must be at most {MOST[key]}, or be given by yourself")
    try:
        checked = kind(**values)
    except ValueError as error:
        refuse(str(error))
    return {key: getattr(checked, key) for key in values}
