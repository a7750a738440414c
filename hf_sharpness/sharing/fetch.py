"""Finds a shared file: on this machine, or in a repo on the Hub."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from .values import short

MAX_BYTES = 64 * 1024


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
        downloaded = hf_hub_download(
            repo_id,
            filename,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            local_files_only=local_files_only,
            force_download=force_download,
            library_name="hf_sharpness",
            library_version=__version__,
        )
    except Exception as error:  # also whatever the client's transport raises
        problem = _explained(error, filename, revision)
        raise OSError(f"{name}: no local file or folder, and the repo {repo_id} on the Hub {problem}") from None
    return Path(downloaded), origin


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
