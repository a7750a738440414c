"""Runs scripts as they are and under `hf-sharpness run`, on tiny models and data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import script_assets

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
COMMON = {
    "use_cpu": True,
    "report_to": "none",
    "max_steps": 3,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "disable_tqdm": True,
    "save_strategy": "no",
}
TIMES = ("runtime", "per_second")


class Finished:
    """A script's exit status, what it printed, and what it left in its output folder."""

    def __init__(self, status: int, log: str, output: Path) -> None:
        self.status, self.log, self.output = status, log, output

    @property
    def weights(self) -> bytes:
        return (self.output / "model.safetensors").read_bytes()

    @property
    def history(self) -> list[dict[str, float]]:
        """The Trainer's log, without how long things took."""
        entries = json.loads((self.output / "trainer_state.json").read_text())["log_history"]
        return [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in entries]

    def metrics(self, split: str) -> dict[str, float]:
        saved = json.loads((self.output / f"{split}_results.json").read_text())
        return {k: v for k, v in saved.items() if not k.endswith(TIMES)}


Launch = Callable[..., Finished]


def flags(arguments: dict[str, Any]) -> list[str]:
    return [text for name, value in arguments.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    script_assets.make(folder)
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of every process started here."""
    root = str(HERE.parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    home = str(tmp_path_factory.mktemp("hf-home"))
    settings = {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **settings, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def forks(environment: dict[str, str]) -> Iterator[Callable[..., int]]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "script_forks.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout.readline() == "ready\n"

        def fork(**request: Any) -> int:
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield fork
        server.stdin.close()


@pytest.fixture
def launch(forks: Callable[..., int], tmp_path: Path) -> Launch:
    """`launch(script, *arguments, plain=False, output="out", **flags)` runs a script of the folder beside this file.

    Flags of COMMON are added, unless `common` is False; `before` are options of `hf-sharpness run`.
    """

    def launch(
        script: str,
        *arguments: str,
        before: Sequence[str] = (),
        plain: bool = False,
        output: str = "out",
        common: bool = True,
        **given: Any,
    ) -> Finished:
        if common:
            given = {**COMMON, "output_dir": output, **given}
        log = tmp_path / f"{output}.log"
        status = forks(
            arguments=[*before, str(SCRIPTS / script), *arguments, *flags(given)],
            folder=str(tmp_path),
            log=str(log),
            plain=plain,
        )
        return Finished(status, log.read_text(), tmp_path / output)

    return launch


@pytest.fixture
def process(environment: dict[str, str], tmp_path: Path) -> Callable[..., Finished]:
    """`process(*command)` runs a command, beginning with Python's options, in a process of its own."""

    def process(
        *command: str | Path,
        output: str = "out",
        folder: Path | None = None,
        executable: Sequence[str] = (sys.executable,),
        **variables: str,
    ) -> Finished:
        done = subprocess.run(
            [*executable, *map(str, command)],
            cwd=folder or tmp_path,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return Finished(done.returncode, done.stdout, tmp_path / output)

    return process
