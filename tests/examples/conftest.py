"""Makes an example method known to the Trainer: by `register`, or as an installed package does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cases import Example
from installed import install

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
        install(example.path, tmp_path / "site")
        return tmp_path / "site"

    return make
