"""The arguments of a tiny run."""

from __future__ import annotations

from pathlib import Path


def training(output: Path, **changes):
    return {
        "output_dir": str(output),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "max_steps": 4,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "learning_rate": 3e-3,
        **changes,
    }
