"""Steps of a Trainer that waits before each of them until it is asked for one."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import transformers

import hf_sharpness

from .arms import LEARNING_RATE, METHODS, Arm, Setting, floor_name
from .subjects import collate

MANY = 100_000
ARGUMENTS: dict[str, dict[str, Any]] = {
    "base": {"optim": "adamw_torch"},
    "SAM": {"optim": "sam"},
    "WSAM coupled": {"optim": "wsam", "wsam_mode": "coupled"},
    "WSAM decoupled": {"optim": "wsam", "wsam_mode": "decoupled"},
    "WSAM preconditioned": {"optim": "wsam", "wsam_mode": "preconditioned"},
    "XSAM, alpha fixed": {"optim": "xsam", "xsam_alpha": 1.2},
}


class _Turns(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.asked, self.made = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.asked.acquire()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.made.release()
        self.asked.acquire()
        control.should_training_stop = self.over


class _Repeated:
    """The same examples again and again."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return MANY * len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index % len(self.examples)]


def in_trainer(setting: Setting, name: str) -> Arm:
    """A method through this package's Trainer, or the base optimizer through transformers' own.

    Args:
        setting: in which circumstances.
        name: a key of ARGUMENTS.
    """
    stock = name == "base"
    own = ARGUMENTS[name] | ({} if stock else {"sam_check": "off"})
    folder = tempfile.TemporaryDirectory()
    arguments: Any = (transformers if stock else hf_sharpness).TrainingArguments(
        folder.name,
        per_device_train_batch_size=setting.subject.batch // setting.micro_batches,
        gradient_accumulation_steps=setting.micro_batches,
        max_steps=MANY,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        logging_steps=MANY,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=setting.device.type == "cpu",
        bf16=setting.bf16,
        log_level="error",
        **own,
    )
    turns = _Turns()
    trainer = (transformers if stock else hf_sharpness).Trainer(
        setting.subject.model(setting.device),
        arguments,
        train_dataset=_Repeated(setting.subject.examples(setting.subject.batch)),
        data_collator=collate,
        callbacks=[turns],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    thread = threading.Thread(target=trainer.train, daemon=True)

    def step() -> None:
        if not thread.ident:
            thread.start()
        turns.asked.release()
        while not turns.made.acquire(timeout=1.0):
            if not thread.is_alive():
                raise RuntimeError("the training has ended: see its error above")

    def close() -> None:
        turns.over = True
        turns.asked.release()
        if thread.ident:
            thread.join()
        folder.cleanup()

    replays = 0 if stock else METHODS[name][1]
    floor = "" if stock else floor_name(replays)
    return Arm("stock Trainer, base" if stock else f"Trainer, {name}", step, floor, close=close)
