"""The marker `shows`, which every row of the pages of modes comes from, and the launcher of real ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from claims import Claims
from launch import HERE, Ranks, launch
from packaging.version import Version

MARKER = (
    "shows(mode, result, method=None, brief=None): what a passing test shows for the modes' pages. `result` is one of "
    "claims.RESULTS; `method` one name, a list of them, 'all', or by default that of the test's `spec`; `brief` the "
    "row of the short table, docs/modes.md, for the modes that belong there."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--modes-table", help="a folder for the pages of modes, made from the marked tests that passed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    config.pluginmanager.register(Claims(config.getoption("--modes-table", None)), "mode-claims")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The oldest versions cannot do all of it: torch 2.6 runs no FSDP2 on a CPU, transformers 5.0 shards at no load."""
    if Version(torch.__version__) >= Version("2.7"):
        return
    skipped = pytest.mark.skip(reason="this torch runs no FSDP2 on a CPU: its streams there record no events")
    for item in items:
        if HERE in item.path.parents and any(word in item.nodeid for word in ("fsdp2", "hsdp", "shard")):
            item.add_marker(skipped)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ranks]:
    """`ranks("cases_ddp")` launches that module's cases on two ranks, once in a test session."""
    own = tmp_path_factory.getbasetemp()
    shared: Path = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    done: dict[str, Ranks] = {}

    def get(module: str) -> Ranks:
        if module not in done:
            done[module] = launch(module, shared / "ranks")
        return done[module]

    return get
