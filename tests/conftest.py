"""The two runners every test goes through: `plain` for a PyTorch loop, `train` for the Hugging Face Trainer."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

# What the tests and their child processes leave in the temporary directory (torch does, where a process is killed) goes
# with the session; pytest keeps its own folders, `tmp_path`, where they have always been.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="hf-sharpness-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = os.path.join(os.environ["TMPDIR"], "hf-home")

import torch
from by_default import USUALLY, mark_slow
from models import Batch, accumulate, collate
from oldest import options_for_momentum
from reference import flat
from torch import nn
from torch.utils.data import SequentialSampler

tempfile.tempdir = os.environ["TMPDIR"]
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", USUALLY)


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_slow(items)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


def plain_loop(
    model: nn.Module,
    steps: Sequence[Sequence[Batch]],
    optimizer: torch.optim.Optimizer,
    method: Any = None,
    lrs: Sequence[float] | None = None,
    max_norm: float | None = None,
    epoch_starts: Collection[int] = (0,),
) -> list[torch.Tensor]:
    """Train `model` in place, as a user would without Trainer; the weights after every step.

    `lrs` are factors of every group's learning rate; without a `method` the closure's own gradient is used.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if lrs is None else (*lrs, 0.0)[step])
    weights = []
    for step, micro_batches in enumerate(steps):

        def closure(micro_batches: Sequence[Batch] = micro_batches) -> torch.Tensor:
            losses = [accumulate(model, batch, len(micro_batches)) for batch in micro_batches]
            return torch.stack(losses).sum()

        if step in epoch_starts and hasattr(method, "start_epoch"):
            method.start_epoch()
        closure() if method is None else method.backward(closure, measure=step == len(steps) - 1)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        weights.append(flat(model))
    return weights


@pytest.fixture(autouse=True)
def unchecked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step makes the guard's further pass, but for tests marked `checked`: most tests count passes."""
    if request.node.get_closest_marker("checked") is None:
        from hf_sharpness.engine.guard import Guard

        monkeypatch.setattr(Guard, "step_begins", lambda self, due: None)


@pytest.fixture
def plain() -> Callable[..., list[torch.Tensor]]:
    return plain_loop


class Run:
    """A finished (or failed) Trainer run: the trainer, the weights after every step, the error if one was caught."""

    def __init__(self, trainer: Any, model: nn.Module):
        self.trainer, self.model = trainer, model
        self.weights: list[torch.Tensor] = []
        self.error: BaseException | None = None

    def series(self, key: str) -> list[float]:
        return [entry[key] for entry in self.trainer.state.log_history if key in entry]


@pytest.fixture(scope="session")
def libraries() -> Any:
    """Imported once and then out of the garbage collector's way: the Trainer collects at the start of every run."""
    import transformers
    import transformers.trainer

    import hf_sharpness

    gc.freeze()
    return hf_sharpness, transformers


def goes_on_with_other_batches(checkpoint: Path) -> bool:
    """Whether a training that is resumed there draws another order than it had: within an epoch, accelerate < 1.7."""
    within = json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] % 1 > 0
    return within and Version(importlib.metadata.version("accelerate")) < Version("1.7")


@pytest.fixture
def train(tmp_path: Path, libraries: Any) -> Callable[..., Run]:
    """`train(model, items, **training_arguments)` trains a copy of the model, the items in order unless `shuffle`."""
    hf_sharpness, transformers = libraries

    def run(
        model: nn.Module,
        items: Sequence[Batch],
        *,
        stock: bool = False,
        trainer_class: type | None = None,
        arguments_class: type | None = None,
        shuffle: bool = False,
        resume: str | Path | None = None,
        catch: type[BaseException] | tuple[type[BaseException], ...] = (),
        callbacks: Sequence[Any] = (),
        trainer_options: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Run:
        if resume is not None and shuffle and goes_on_with_other_batches(Path(resume)):
            pytest.skip("this accelerate goes on with other batches, in transformers' own Trainer too")
        library = transformers if stock else hf_sharpness
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 1,
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "constant",
        } | arguments
        trainer_class = trainer_class or library.Trainer
        trainer_options = dict(trainer_options or {})
        if not issubclass(trainer_class, transformers.Seq2SeqTrainer):  # which lacks the option
            trainer_options |= options_for_momentum(arguments)

        class Ordered(trainer_class):
            def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
                if shuffle:
                    return super()._get_train_sampler(*args, **kwargs)
                return SequentialSampler(self.train_dataset)

        class Recorder(transformers.TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                result.weights.append(flat(result.model))

        model = deepcopy(model)
        trainer = Ordered(
            model=model,
            args=(arguments_class or library.TrainingArguments)(**arguments),
            train_dataset=items,
            data_collator=collate,
            callbacks=[Recorder(), *callbacks],
            **trainer_options,
        )
        result = Run(trainer, model)
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        except catch as error:
            result.error = error
        return result

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Where a run with `output_dir=tmp_path / name` saved step number `step`."""
    return lambda step, name="run": tmp_path / name / f"checkpoint-{step}"
