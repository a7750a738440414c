"""Run a module's cases on several real gloo processes, started as a user would with torchrun.

A module of cases decorates functions with `case`; `worker.py` runs all of them on every rank, in one launch, and
keeps what each returned. The tests compare the ranks' results with each other and with references of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_default import stand_ins

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES: dict[str, dict[str, Callable[[Path], Any]]] = {}
"""The cases of every module, by name."""
BY_DEFAULT: dict[str, set[str]] = {}
"""Those of a module that tests by default look at."""


def case(*variants: Any, usually: str | None = None) -> Callable[[Callable], Callable]:
    """Registers `function(directory, variant)` once for each variant, or `function(directory)` if there is none.

    By default run the variants that the regular expression `usually` finds, else those of two methods; as of tests.
    """

    def register(function: Callable) -> Callable:
        cases = {f"{function.__name__}-{v}": lambda directory, v=v: function(directory, v) for v in variants}
        cases = cases or {function.__name__: function}
        CASES.setdefault(function.__module__, {}).update(cases)
        chosen = stand_ins(cases) if usually is None else {name for name in cases if re.search(usually, name)}
        BY_DEFAULT.setdefault(function.__module__, set()).update(chosen)
        return function

    return register


def environment(**extra: str) -> dict[str, str]:
    """For a child process: one thread, loopback only, offline, and this repository's modules importable."""
    paths = [str(ROOT), str(HERE.parent), str(HERE)]
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    return inherited | loopback | quiet | threads | {"PYTHONPATH": os.pathsep.join(paths)} | extra


def run_bounded(command: list[str], timeout: float, log: Path, **options: Any) -> int:
    """Run a command in a process group of its own; kill the whole group at the end, whatever happened."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return -signal.SIGALRM
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def torchrun(world: int, *command: str) -> list[str]:
    """The command line that starts `command` on every rank, on a free port of the loopback."""
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc_per_node", str(world)]
    return [sys.executable, "-m", "torch.distributed.run", *options, *command]


class Ranks:
    """The results of a launch: `ranks["case"]` is a list with every rank's result, and fails where one raised."""

    def __init__(self, directory: Path, world: int):
        self.log = (directory / "log").read_text()
        files = [directory / f"rank{rank}.pt" for rank in range(world)]
        self.results = [torch.load(f, weights_only=False) if f.exists() else {} for f in files]

    def __getitem__(self, name: str) -> list[Any]:
        for rank, results in enumerate(self.results):
            if name not in results:
                pytest.fail(f"rank {rank} never finished {name!r}; the log ends:\n{self.log[-4000:]}")
            if isinstance(results[name], Failure):
                pytest.fail(f"rank {rank} raised in {name!r}:\n{results[name].text}")
        return [results[name] for results in self.results]


class Failure:
    """An exception in a case, as text."""

    def __init__(self, text: str):
        self.text = text


def launch(module: str, shared: Path, everything: bool, world: int = 2, timeout: float = 480) -> Ranks:
    """Run the cases of `module` on `world` ranks, or take what another process of this test session already ran.

    Unless it is to be `everything`, those alone that tests by default look at.
    """
    directory = shared / module
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "log").exists():
            command = torchrun(world, str(HERE / "worker.py"), module, str(directory), str(everything))
            run_bounded(command, timeout, directory / "log", env=environment(), cwd=directory)
    return Ranks(directory, world)
