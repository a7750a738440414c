"""Trains with every method in a child of its own, which a SIGKILL ends in the middle of a replay."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from models import MaskRecorder, Net, classification, collate
from specs_of_modes import METHODS

KILLED_IN_STEP = 4
ARGUMENTS = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "lr_scheduler_type": "cosine",
    "learning_rate": 0.01,
    "save_strategy": "steps",
    "save_steps": 1,
}


def network() -> Net:
    return Net(lambda: MaskRecorder(0.3))


def train(name: str, folder: Path) -> None:
    from specs_of_modes import named

    from hf_sharpness import Trainer, TrainingArguments

    class Killed(Trainer):
        replays = 0

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.state.global_step == KILLED_IN_STEP - 1:
                self.model.last.register_forward_hook(self.count)
            return super().training_step(*args, **kwargs)

        def count(self, *args: Any) -> None:
            self.replays += 1
            if self._sharpness_engine.passes is not None and self._sharpness_engine.passes.saved:
                os.kill(os.getpid(), signal.SIGKILL)

    args = TrainingArguments(output_dir=str(folder / name), **ARGUMENTS | named(name).arguments())
    items = classification(96, torch.float32)
    Killed(model=network(), args=args, train_dataset=items, data_collator=collate).train()


def main() -> None:
    import transformers.trainer  # noqa: F401  (once, before the children are forked)

    for spec in METHODS:
        child = os.fork()
        if not child:
            train(spec.name, Path(sys.argv[1]))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"{spec} died of signal {os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}", flush=True)


if __name__ == "__main__":
    main()
