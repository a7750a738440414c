"""Whichever way a script or a library comes by the classes, they are this package's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SCRIPTS, Finished, Launch

Process = Callable[..., Finished]
RUN = ("-m", "hf_sharpness.run")
FIRST = [
    "",
    "hf_sharpness.sharpness_arguments.definitions",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "transformers.modeling_utils",
            "transformers.trainer_callback",
            "transformers.trainer_seq2seq",
            "transformers.training_args",
            "transformers.training_args_seq2seq",
            "hf_sharpness.trainer",
            "hf_sharpness.arguments",
            "peft",
        )
    ),
]


@pytest.mark.usually("^$")
@pytest.mark.parametrize("first", FIRST)
def test_import_order(first: str, process: Process, tmp_path: Path) -> None:
    done = process(*RUN, SCRIPTS / "imports.py", first, "hf_sharpness.", tmp_path / "home")
    assert done.status == 0, done.log
    assert "checked hf_sharpness." in done.log


@pytest.mark.slow
def test_checks_hold_for_transformers(process: Process, tmp_path: Path) -> None:
    """The script's assumptions are true of the plain classes."""
    done = process(SCRIPTS / "imports.py", "", "transformers.", tmp_path / "home")
    assert done.status == 0, done.log


@pytest.mark.slow
def test_install_late(process: Process, tmp_path: Path) -> None:
    """`install()` where transformers has been imported already, twice."""
    install = (
        "import sys, runpy, transformers; from transformers import Seq2SeqTrainer;"
        "from hf_sharpness.patching import install; install(); install(); sys.argv[:] = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    home = str(tmp_path / "home")
    done = process("-c", install, SCRIPTS / "imports.py", "", "hf_sharpness.", home, HF_HOME=home)
    assert done.status == 0, done.log


def test_a_script_that_mixes_the_classes_in(launch: Launch) -> None:
    """Its stock bases already are this package's then."""
    plain = launch("mixed.py", plain=True, output="plain", optim="wsam", sam_rho=0.2)
    ours = launch("mixed.py", optim="wsam", sam_rho=0.2)
    assert plain.status == ours.status == 0, plain.log + ours.log
    shown = [[line for line in done.log.splitlines() if line.startswith(("My", "["))] for done in (plain, ours)]
    assert len(shown[0]) == 4
    assert shown[0] == shown[1]


def test_saved_arguments(launch: Launch, assets: Path) -> None:
    """`training_args.bin` loads in a process in which nothing was replaced."""
    import torch
    import transformers

    arguments = {"model_name_or_path": assets / "models" / "bert", "train_file": assets / "data" / "train-tags.json"}
    done = launch("token_classification.py", **arguments, optim="wsam", sam_rho=0.3)
    assert done.status == 0, done.log
    args = torch.load(done.output / "training_args.bin", weights_only=False)
    assert (args.optim, args.sam_rho, args.max_steps) == ("wsam", 0.3, 3)
    assert isinstance(args, transformers.TrainingArguments)
    assert transformers.TrainingArguments.__module__ == "transformers.training_args"


@pytest.mark.slow
def test_spawned_processes(process: Process, tmp_path: Path) -> None:
    """What multiprocessing spawns can unpickle the script's classes, and trains with sharpness-aware steps too."""
    import torch

    for name, command in ("plain", ()), ("stock", RUN), ("wsam", RUN):
        optim = "adamw_torch" if name == "plain" or name == "stock" else "wsam"
        done = process(*command, SCRIPTS / "workers.py", name, optim)
        assert done.status == 0, done.log
        assert done.log.count("'sharpness'") == (4 if name == "wsam" else 0)
    for workers in 0, 1:
        plain, stock = (torch.load(tmp_path / name / f"weight-{workers}.pt") for name in ("plain", "stock"))
        assert plain.equal(stock)
