"""Python processes that a program starts anew: launchers, command lines, pools."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMON, SCRIPTS, Finished, flags
from test_run_libraries import needs

Process = Callable[..., Finished]
RUN = ("-m", "hf_sharpness.run")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """PATH, with console scripts as pip writes them in front."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module, function in (
        ("trl", "trl.cli", "main"),
        ("accelerate", "accelerate.commands.accelerate_cli", "main"),
        ("torchrun", "torch.distributed.run", "main"),
        ("shows", "shows", "main"),
    ):
        script = folder / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
    (folder / "shows.py").write_text("import sys\ndef main():\n    print('shown', sys.argv[1:])\n    return 5\n")
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def tiny_flags(**given: Any) -> list[str]:
    return flags({**COMMON, "per_device_train_batch_size": 2, "output_dir": "out", "optim": "wsam", **given})


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


LAUNCHERS = {
    "accelerate": ["accelerate", "launch", "--cpu", "--num_processes", "1", "{tiny}", "{flags}"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", "{port}", "{tiny}", "{flags}"],
    "torchrun -m": ["-m", "torch.distributed.run", "--master_port", "{port}", "{tiny}", "{flags}"],
    "bash": ["torchrun", "--nproc_per_node", "2", "--master_port", "{port}", "--no-python", "bash", "x.sh", "{flags}"],
    "python": [sys.executable, "{tiny}", "{flags}"],
    "shell script": ["./x.sh", "{flags}"],
    **{how: ["{scripts}/starts_anew.py", how, "{flags}"] for how in ("subprocess", "spawn", "forkserver", "loky")},
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_trains_with_the_method(launcher: str, process: Process, path: str, tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text(f"#!/bin/bash\n'{sys.executable}' '{SCRIPTS / 'tiny.py'}' \"$@\"\n")
    (tmp_path / "x.sh").chmod(0o755)
    done = process(*RUN, *filled(LAUNCHERS[launcher]), PATH=path)
    assert done.status == 0, done.log
    assert [e["sharpness"] > 0 for e in done.history if "loss" in e] == [True] * 3
    assert "hf-sharpness run" not in done.log
    assert done.log.count("WSAM: rho 0.05, ") == done.log.count("WSAM: 3 of 3 optimizer steps") == 1, done.log


def filled(command: list[str]) -> list[str]:
    places = {"tiny": SCRIPTS / "tiny.py", "scripts": SCRIPTS, "port": free_port()}
    return [text for part in command for text in (tiny_flags() if part == "{flags}" else [part.format(**places)])]


@pytest.mark.slow
@needs("trl")
def test_the_command_line_of_trl(process: Process, assets: Path, path: str, tmp_path: Path) -> None:
    """`trl sft --config x.yaml --optim wsam`, which starts Accelerate's launcher, which starts its script."""
    (tmp_path / "x.yaml").write_text(
        f"model_name_or_path: {assets / 'models' / 'llama'}\ndataset_name: {assets / 'chats'}\nbf16: false\n"
        "use_cpu: true\nreport_to: none\nmax_steps: 3\nlogging_steps: 1\nsave_strategy: 'no'\noutput_dir: out\n"
    )
    command = ["trl", "sft", "--config", "x.yaml", "--optim", "wsam", "--sam_rho", "0.1"]
    plain = process("-c", "import sys, trl.cli; sys.exit(trl.cli.main())", *command[1:], PATH=path)
    assert plain.status != 0
    assert "invalid choice: 'wsam'" in plain.log
    done = process(*RUN, *command, PATH=path)
    assert done.status == 0, done.log
    assert done.log.count("'perturbation_norm': '0.1'") == 3


@pytest.mark.slow
def test_lost_on_the_way(process: Process, path: str) -> None:
    """A launcher that says `PYTHONPATH=src ...`, and options that drop the variable: named as the causes."""
    overwritten = [*RUN, "env", f"PYTHONPATH={SCRIPTS.parents[2]}", sys.executable]
    done = process(*overwritten, SCRIPTS / "tiny.py", *tiny_flags(), PATH=path)
    assert done.status == 2, done.log  # transformers' own parser knows no wsam
    assert "invalid choice: 'wsam'" in done.log
    done = process(*overwritten, SCRIPTS / "hard_coded.py", "--optim", "wsam", PATH=path)
    assert done.status == 3, done.log
    assert done.log.count("optimizer Adafactor") == 2
    assert "PYTHONPATH is overwritten" in done.log
    for option in "-I", "-E", "-S":
        ignoring = [*RUN, sys.executable, option, "-c", "print('trained')", "--optim", "wsam"]
        done = process(*ignoring, PATH=path)
        assert done.status == 3, done.log
        assert "PYTHONPATH is overwritten" in done.log
        assert "trained" in done.log


@pytest.mark.slow
def test_a_run_within_a_run(process: Process, path: str) -> None:
    """Both wait for reports; what happened further in counts for both."""
    inner = [sys.executable, "-m", "hf_sharpness.run", SCRIPTS / "tiny.py"]
    done = process(*RUN, *inner, *tiny_flags(), PATH=path)
    assert done.status == 0, done.log
    done = process(*RUN, *inner[:-1], SCRIPTS / "hard_coded.py", "--optim", "wsam", PATH=path)
    assert done.status == 3
    assert done.log.count("all 3 optimizer steps") == 1, done.log


def test_commands_are_found_on_path(process: Process, path: str, tmp_path: Path) -> None:
    """Unless there is a file of that name; the exit status is the command's."""
    done = process(*RUN, "shows", "--flag", "x", PATH=path)
    assert (done.status, done.log) == (5, "shown ['--flag', 'x']\n")
    (tmp_path / "shows").mkdir()  # as in a checkout of the project
    assert process(*RUN, "shows", PATH=path).status == 5
    (tmp_path / "shows").rmdir()
    (tmp_path / "shows").write_text("print('the file')\n")
    done = process(*RUN, "shows", PATH=path)
    first, second = done.log.splitlines()
    assert first == f"hf-sharpness run: shows in the current folder is run, not {tmp_path / 'bin' / 'shows'}"
    assert second == "the file"
    (tmp_path / "shows").unlink()
    done = process(*RUN, "shown", PATH=path)
    assert done.status == 2
    assert "no such command on PATH" in done.log


def test_a_file_that_cannot_be_started(process: Process, tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("#!/bin/sh\n")
    done = process(*RUN, "./x.sh")
    assert (done.status, done.log) == (
        2,
        f"hf-sharpness run: error: can't start '{tmp_path}/./x.sh': Permission denied\n",
    )


def test_commands_beside_this_python(process: Process) -> None:
    """Its environment need not be activated."""
    name = Path(sys.executable).name
    done = process(*RUN, name, "-c", "print('here')", PATH="")
    assert (done.status, done.log) == (0, "here\n")


@pytest.mark.parametrize("signal", ["INT", "TERM", "KILL"])
def test_signals_of_a_command(signal: str, process: Process) -> None:
    """Its end is told as a shell tells it."""
    done = process(*RUN, "sh", "-c", f"kill -{signal} $$")
    assert done.status == {"INT": 130, "TERM": 143, "KILL": 137}[signal]


def test_sigterm_goes_on_to_the_command(process: Process) -> None:
    child = "trap 'echo told; exit 9' TERM; kill -TERM $PPID; sleep 20 & wait"
    done = process(*RUN, "bash", "-c", child)
    assert (done.status, done.log) == (9, "told\n")
