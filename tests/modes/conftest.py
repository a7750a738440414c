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


CANNOT = {
    "torch 2.6 runs no FSDP2 on a CPU: its streams there record no events": ("fsdp2", "hsdp", "shard"),
    "transformers 5.0 has no `tp_size` in its DistributedConfig": ("tensor_parallel",),
    "transformers 5.0's own Trainer cannot resume on several ranks here (no location 'cpu:0' to restore to)": (
        *("test_ddp_resumes", "from_a_checkpoint_of_two", "that_one_rank_lacks"),
    ),
}
"""What torch 2.6 with transformers 5.0 does not do, and parts of the names of the tests that would need it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--modes-table", help="a folder for the pages of modes, made from the marked tests that passed")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    config.pluginmanager.register(Claims(config.getoption("--modes-table", None)), "mode-claims")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The oldest versions cannot do all of it: see the reasons."""
    if Version(torch.__version__) >= Version("2.7"):
        return
    for item in items:
        for reason, words in CANNOT.items():
            if HERE in item.path.parents and any(word in item.nodeid for word in words):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Callable[[str], Ranks]:
    """`ranks("cases_ddp")` launches that module's cases on two ranks, once in a test session."""
    own = tmp_path_factory.getbasetemp()
    shared: Path = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    done: dict[str, Ranks] = {}

    def get(module: str) -> Ranks:
        if module not in done:
            done[module] = launch(module, shared / "ranks", pytestconfig.option.markexpr != "not slow")
        return done[module]

    return get
