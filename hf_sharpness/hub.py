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
import difflib
import json
import logging
import math
import os
import reprlib
import typing
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import CommitInfo, HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from . import __version__
from .arguments import HYPERPARAMETERS, SharpnessArguments
from .methods import METHODS

CONFIG_NAME = "sharpness_config.json"
FORMAT_VERSION = 1
"""Of the config. A reader refuses a higher one."""
MAX_BYTES = 64 * 1024
MOST = {"sam_steps": 1_000, "xsam_alpha_points": 10_000}
"""A config may not ask for more: these cost a pass over the batch each. The command line may."""

ARGUMENTS = tuple(f.name for f in dataclasses.fields(SharpnessArguments) if f.name != "sharpness_config")
"""What a config can set."""
_ABOUT = ("format_version", "hf_sharpness_version", "paper")

log = logging.getLogger(__name__)


def config_text(arguments: SharpnessArguments) -> str:
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
    values = {name: getattr(arguments, name) for name in ARGUMENTS}
    return json.dumps({**about, **values}, indent=2, allow_nan=False) + "\n"


def save(arguments: SharpnessArguments, folder: str | os.PathLike[str]) -> Path:
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


def remove_stale(folder: str | os.PathLike[str]) -> None:
    """Remove the ``sharpness_config.json`` of an earlier run: the model saved in the folder now was not trained so.

    A file that is not valid, or names none of this package's methods, is left alone.
    """
    path = Path(folder, CONFIG_NAME)
    if not path.is_file():
        return
    with contextlib.suppress(ValueError, OSError):
        if parse_config(read(path), str(path)).get("optim") in METHODS:
            path.unlink()
            log.info("%s is of an earlier run and was removed: this model was trained without it", path)


def push(
    arguments: SharpnessArguments,
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


def load(name: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The sharpness arguments of a config.

    Args:
        name: a file, a folder with ``sharpness_config.json``, or a repo on the Hub: ``user/repo``,
            ``user/repo@revision``.
        options: as in ``fetch``.

    Raises:
        ValueError: the name or the content is not valid.
        OSError: there is no such file.
    """
    path, origin = fetch(name, CONFIG_NAME, **options)
    return parse_config(read(path), origin)


def fill(arguments: SharpnessArguments, given: set[str]) -> None:
    """Set the arguments that were not given from the config that ``arguments.sharpness_config`` names."""
    name = arguments.sharpness_config
    values = load(name, token=getattr(arguments, "hub_token", None))
    free = {key: value for key, value in values.items() if key not in given}
    _note_new_meanings(arguments, values, free, given)
    if values and not free:
        log.warning("sharpness_config=%r changes nothing: all of its arguments were given explicitly as well", name)
    for key, value in free.items():
        setattr(arguments, key, value)
    log.info("sharpness_config=%r: %s", name, free)
    # The values are in their places: a copy made of them (as by to_dict) must not ask the Hub again.
    arguments.sharpness_config = None


def _note_new_meanings(
    arguments: SharpnessArguments, values: dict[str, Any], free: dict[str, Any], given: set[str]
) -> None:
    """Where what was given changes the meaning of a number of the config: drop WSAM's gamma, warn of rho.

    Args:
        arguments: those that were given, and defaults.
        values: the config's.
        free: of these, those that apply; changed in place.
        given: names of arguments.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(SharpnessArguments)}
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
    return mode if mode != "auto" else "decoupled" if base == "sgd" else "coupled"


def parse_config(content: bytes, origin: str) -> dict[str, Any]:
    """Read and check a config.

    Args:
        content: the file's.
        origin: how an error names the file.

    Returns:
        The arguments it sets: names of ``ARGUMENTS``, valid values.

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
    for key in config:
        if key not in ARGUMENTS and key not in _ABOUT:
            close = difflib.get_close_matches(key[:100], ARGUMENTS, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            refuse(f"the key {short(key)} is not allowed: {meant}remove it; a config can set {', '.join(ARGUMENTS)}")
    for key in _ABOUT[1:]:
        if not isinstance(config.get(key), str | None):
            refuse(f"{key}={short(config[key])} is not valid: must be a string")
    values = {key: value for key, value in config.items() if key in ARGUMENTS}
    for key, value in values.items():
        if not _fits(value, _TYPES[key]) or (isinstance(value, str) and len(value) > 100):
            refuse(f"{key}={short(value)} is not valid: must be {_described(_TYPES[key])}")
        if key in MOST and value > MOST[key]:
            refuse(f"{key}={value} is too large for a config: must be at most {MOST[key]}, or be given by yourself")
    try:
        checked = SharpnessArguments(**values)
    except ValueError as error:
        refuse(str(error))
    return {key: getattr(checked, key) for key in values}


# The type that a method declares says more than the argument's, which HfArgumentParser must understand.
_TYPES = typing.get_type_hints(SharpnessArguments) | {
    argument: typing.get_type_hints(cls)[name] for argument, (cls, name) in HYPERPARAMETERS.items()
}


def _fits(value: Any, hint: Any) -> bool:
    types = typing.get_args(hint) or (hint,)
    return type(value) in types or (type(value) is int and float in types)


def _described(hint: Any) -> str:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a string", type(None): "null"}
    return " or ".join(words[t] for t in typing.get_args(hint) or (hint,))


def short(value: Any) -> str:
    """A value in an error message: ASCII, and not long."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 80, 80, 80


def fetch(
    name: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str]:
    """Find a shared file; what exists locally goes before the Hub.

    Args:
        name: a file, a folder that holds ``filename``, or a model repo ``user/repo`` or ``user/repo@revision``.
        filename: the file's name in a folder or repo.
        revision: branch, tag or commit of the repo. Default: its main branch. A local ``name`` has none.
        token: for private and gated repos. Default: that of ``hf auth login`` or HF_TOKEN.
        cache_dir: the cache of downloads. Default: huggingface_hub's.
        local_files_only: look in the cache only.
        force_download: download again what is in the cache.

    Returns:
        The file, and its name for error messages.

    Raises:
        ValueError: the name is neither of these, or the file on the Hub is too large.
        OSError: there is no such file, or no access to it.
    """
    name = os.fspath(name)
    if not name.strip():
        raise ValueError(f"{name!r} names nothing: give a file, a folder, or a repo on the Hub (user/repo)")
    path = Path(name)
    if path.is_dir():
        path = path / filename
        if not path.is_file():
            raise FileNotFoundError(f"{name}: this folder holds no {filename}")
    if path.is_file():
        return path, str(path)

    repo_id, at, written = name.partition("@")
    if at and revision is not None and revision != written:
        raise ValueError(f"{name}: names the revision {written!r}, but revision={revision!r} was given too: give one")
    if at and not written:
        raise ValueError(f"{name}: names no revision after '@'")
    revision = written if at else revision
    try:
        validate_repo_id(repo_id)
        if path.suffix in (".json", ".yaml", ".yml"):
            raise HFValidationError
    except HFValidationError:
        problem = "is no local file or folder, and cannot be a repo on the Hub (user/repo, user/repo@revision)"
        raise ValueError(f"{short(name)} {problem}") from None
    origin = f"{repo_id}/{filename}" + (f"@{revision}" if revision else "")
    if not local_files_only:
        _refuse_large(hf_hub_url(repo_id, filename, revision=revision), token, origin)
    try:
        path = hf_hub_download(
            repo_id,
            filename,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            library_name="hf_sharpness",
            library_version=__version__,
        )
    except Exception as error:  # also whatever the client's transport raises
        problem = _explained(error, filename, revision)
        raise OSError(f"{name}: no local file or folder, and the repo {repo_id} on the Hub {problem}") from error
    return Path(path), origin


def _refuse_large(url: str, token: str | bool | None, origin: str) -> None:
    size = None
    with contextlib.suppress(Exception):  # the download that follows says what is wrong, or finds the file in the cache
        size = get_hf_file_metadata(url, token=token).size
    if size is not None and size > MAX_BYTES:
        raise ValueError(f"{origin}: is {size:,} bytes large, and may not be larger than {MAX_BYTES:,}: not downloaded")


def _explained(error: Exception, filename: str, revision: str | None) -> str:
    login = "log in with `hf auth login`, or pass a token"
    if isinstance(error, GatedRepoError):
        return f"is gated: ask for access on its page, then {login}"
    if isinstance(error, RepositoryNotFoundError):
        return f"does not exist or is private: check the name; for a private repo {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}: give one of its branches, tags or commits"
    if isinstance(error, LocalEntryNotFoundError):
        return f"is out of reach, with no {filename} of it in the cache: go online once, with HF_HUB_OFFLINE unset"
    if isinstance(error, EntryNotFoundError):
        return f"has no {filename}" + (f" at revision {revision!r}" if revision else "")
    return f"cannot be read: {' '.join(str(error).split())[:300]}"


def read(path: Path) -> bytes:
    """The file's content, and of one that is too large no more than shows it."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
