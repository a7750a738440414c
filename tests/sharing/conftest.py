"""The stand-in for the Hub, processes whose Hub it is, and a folder with a config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from stand_in import Client, Hub


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture(scope="session")
def hf_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf-home")


def client(url: str, hf_home: Path, **environment: str) -> Iterator[Client]:
    """`client(function, *args)` calls a test module's function in a process that has this environment from its start:
    huggingface_hub reads it when it is imported."""
    environment = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(hf_home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    patch = pytest.MonkeyPatch()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with patch.context() as environ:
            for name in ("HF_TOKEN", "HF_HUB_CACHE"):
                environ.delenv(name, raising=False)
            for name, value in environment.items():
                environ.setenv(name, value)
            pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=120)


@pytest.fixture(scope="session")
def online(hub: Hub, hf_home: Path) -> Iterator[Client]:
    """Calls a function in a process that reaches the Hub."""
    yield from client(hub.url, hf_home)


@pytest.fixture(scope="session")
def offline(hub: Hub, hf_home: Path) -> Iterator[Client]:
    """The same, with the same cache, in a process with HF_HUB_OFFLINE=1."""
    yield from client(hub.url, hf_home, HF_HUB_OFFLINE="1")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Holds a config in which nothing is a default."""
    from config_values import OTHER

    from hf_sharpness import SharpnessArguments

    SharpnessArguments(**OTHER).save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")
