"""Makes an example method known to the Trainer: by `register`, or as an installed package does."""

from __future__ import annotations

import configparser
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cases import Example

from hf_sharpness.methods import register, registry


@pytest.fixture
def registered() -> Iterator[Callable[[Example], str]]:
    """`registered(example)` registers its class for the test, and returns the name for `optim`."""
    names = []

    def make(example: Example) -> str:
        register(example.method_class)
        names.append(example.method_class.name)
        return names[-1]

    yield make
    for name in names:
        registry.unregister(name)


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[Example], Path]:
    """`installed(example)` is a folder for the path with what pip would put there."""

    def make(example: Example) -> Path:
        site = tmp_path / "site"
        setup = configparser.ConfigParser()
        setup.read(example.path / "setup.cfg")
        metadata, options = setup["metadata"], setup["options"]
        info = site / f"{metadata['name']}-{metadata['version']}.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n"
        )
        groups = setup["options.entry_points"].items()
        info.joinpath("entry_points.txt").write_text("".join(f"[{group}]{lines}\n" for group, lines in groups))
        shutil.copy(example.path / f"{options['py_modules']}.py", site)
        return site

    return make
