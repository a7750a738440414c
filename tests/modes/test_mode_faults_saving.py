"""Saving in the middle of a step, by a signal handler, on SIGTERM, or not at all on SIGKILL."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from faults import ITEMS, by_method, calls, few_probes, saved_weights
from launch import environment, run_bounded
from models import Net, Record
from reference import Spec, flat
from specs_of_modes import DEEP, METHODS
from torch import Tensor, nn

import hf_sharpness


class Saving:
    """At chosen forward passes, after the last layer, in the middle of a step: saves, and keeps where."""

    def __init__(self, at: set[int], folder: Path, how: str):
        self.at, self.folder, self.how = at, folder, how
        self.record, self.trainer = Record(), None

    @property
    def forwards(self) -> int:
        return self.record.forwards

    @property
    def folders(self) -> list[Path]:
        return self.record.items

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if not module.training:
            return
        self.record.forwards += 1
        if self.forwards in self.at:
            if self.how == "save_model":
                self.folders.append(self.folder / str(self.forwards))
                self.trainer.save_model(str(self.folders[-1]))
            else:
                step = self.trainer.state.global_step
                self.folders.append(Path(self.trainer.args.output_dir) / f"checkpoint-{step}")
                self.trainer._save_checkpoint(self.trainer.model, None)


def run_saving(train: Any, spec: Spec, saving: Saving, **options: Any) -> Any:
    """Two steps of two micro-batches; `saving` hangs on the last layer."""

    class Hooked(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            saving.trainer = self
            self.model.last.register_forward_hook(saving)

    arguments = few_probes(spec).arguments() | {"gradient_accumulation_steps": 2, "max_steps": 2}
    return train(Net(), ITEMS[:32], trainer_class=Hooked, **arguments, **options)


@pytest.mark.usually("^wsam-decoupled-checkpoint|^xsam-k3-save_model")
@pytest.mark.parametrize("how", ["save_model", "checkpoint"])
@pytest.mark.parametrize("spec", [*METHODS, *DEEP], ids=str)
@pytest.mark.shows(
    mode="Saving in the middle of any pass (a signal handler), then exit",
    brief="SIGTERM with save in the middle of a pass",
    result="clean",
)
def test_a_save_in_the_middle_of_a_pass(spec: Spec, how: str, train: Any, tmp_path: Path) -> None:
    """SIGTERM at every forward pass of the second step; the handler saves and exits: the weights are clean."""
    per_step = calls(spec, 2)
    smooth = run_saving(train, spec, Saving(set(), tmp_path, how))
    for number in range(per_step + 1, 2 * per_step + 1):
        saving = Saving({number}, tmp_path / f"s{number}", how)

        def handler(signum: int, frame: Any, saving: Saving = saving) -> None:
            saving(saving.trainer.model.last)
            raise SystemExit(143)

        class Terminated(Saving):
            """Sends a real SIGTERM to this process where the other saves."""

            def __call__(self, module: nn.Module, *args: Any, saving: Saving = saving) -> None:
                saving.trainer = self.trainer
                if module.training:
                    self.record.forwards += 1
                    if self.forwards in self.at:
                        saving.record.forwards = self.forwards - 1
                        os.kill(os.getpid(), signal.SIGTERM)

        earlier = signal.signal(signal.SIGTERM, handler)
        try:
            run = run_saving(train, spec, Terminated({number}, tmp_path, how), catch=SystemExit)
        finally:
            signal.signal(signal.SIGTERM, earlier)
        assert isinstance(run.error, SystemExit)
        assert torch.equal(saved_weights(saving.folders[0]), smooth.weights[0]), number
        assert torch.equal(flat(run.model), smooth.weights[0])


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.shows(mode="Saving in the middle of any pass, then going on", result="exact")
def test_going_on_after_a_save_in_the_middle(spec: Spec, train: Any, tmp_path: Path) -> None:
    """The run is bit for bit the one without the save."""
    per_step = calls(spec, 2)
    smooth = run_saving(train, spec, Saving(set(), tmp_path, "save_model"))
    for number in range(per_step + 1, 2 * per_step + 1):
        saving = Saving({number}, tmp_path / str(number), "save_model")
        run = run_saving(train, spec, saving)
        assert torch.equal(saved_weights(saving.folders[0]), smooth.weights[0]), number
        assert torch.equal(run.weights[-1], smooth.weights[-1]), number


@by_method
@pytest.mark.shows(mode="SIGTERM with transformers' own just-in-time checkpoint", result="exact")
def test_just_in_time_checkpoint(spec: Spec, train: Any, tmp_path: Path) -> None:
    """`enable_jit_checkpoint`: a SIGTERM in the replay; the run that resumes is bit for bit the uninterrupted one."""
    arguments = spec.arguments() | {"gradient_accumulation_steps": 2, "num_train_epochs": 1}
    smooth = train(Net(), ITEMS, **arguments)

    class Terminated(hf_sharpness.Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            (manager,) = [cb.jit_manager for cb in self.callback_handler.callbacks if hasattr(cb, "jit_manager")]
            if self.state.global_step == 3 and not manager.is_checkpoint_requested:
                manager.kill_wait = 0
                os.kill(os.getpid(), signal.SIGTERM)
                while not manager.is_checkpoint_requested:
                    pass
            return super().training_step(*args, **kwargs)

    earlier = signal.getsignal(signal.SIGTERM)
    try:
        stopped = train(Net(), ITEMS, **arguments, trainer_class=Terminated, enable_jit_checkpoint=True)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert len(stopped.weights) < len(smooth.weights)
    folder = tmp_path / "run" / "checkpoint-3"
    assert torch.equal(saved_weights(folder), smooth.weights[2])
    resumed = train(Net(), ITEMS, **arguments, resume=folder)
    assert torch.equal(resumed.weights[-1], smooth.weights[-1])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of every method died, each by a SIGKILL in the middle of a replay (see killed.py)."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed.py")
    code = run_bounded([sys.executable, str(script), str(folder)], 120, folder / "log", env=environment())
    assert code == 0, (folder / "log").read_text()[-3000:]
    return folder


@by_method
@pytest.mark.shows(
    mode="SIGKILL in a replay, then resume from the last checkpoint", brief="SIGKILL, then resume", result="exact"
)
def test_killed_and_resumed(spec: Spec, killed: Path, train: Any) -> None:
    """With dropout, accumulation and a schedule; AdamW."""
    from killed import ARGUMENTS, KILLED_IN_STEP, network

    log = (killed / "log").read_text()
    assert f"{spec} died of signal 9" in log
    assert sorted(p.name for p in (killed / spec.name).glob("checkpoint-*"))[-1] == f"checkpoint-{KILLED_IN_STEP - 1}"
    arguments = ARGUMENTS | spec.arguments() | {"save_strategy": "no"}
    smooth = train(network(), ITEMS, **arguments, shuffle=True)
    last = transformers.trainer_utils.get_last_checkpoint(str(killed / spec.name))
    resumed = train(network(), ITEMS, **arguments, shuffle=True, resume=last)
    assert torch.equal(resumed.weights[-1], smooth.weights[-1])
    assert smooth.series("loss")[-1] == resumed.series("loss")[-1]
