"""A small task, to predict the sum of two tokens, and a Trainer that is watched at it."""

from __future__ import annotations

import queue
import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import hf_sharpness

METHODS: dict[str, dict[str, Any]] = {
    "SAM": {"optim": "sam"},
    "WSAM coupled": {"optim": "wsam", "wsam_mode": "coupled"},
    "WSAM decoupled": {"optim": "wsam", "wsam_mode": "decoupled"},
    "XSAM": {"optim": "xsam"},
}
SGD: dict[str, Any] = {"base": "sgd", "learning_rate": 0.05}
"""The base optimizer that distances are measured under: Adam's would be those of signs."""
Row = tuple[str, str, str]
"""What was run, with which method, and what came out."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""The tests run what they can of this on a CPU."""
draws: Any = torch.cuda if DEVICE == "cuda" else torch.random
"""Where the device's random numbers come from."""


def network(dropout: float = 0.0, width: int = 64, layers: int = 2) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=128,
        num_labels=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


def items(count: int = 128, length: int = 16) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 64, (count, length), generator=generator)
    return [{"input_ids": row, "labels": (row[0] + row[1]) % 8} for row in rows]


def flat(model: nn.Module) -> Tensor:
    parts = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().reshape(-1) for p in parts]).float().cpu()


class Watch(transformers.TrainerCallback):
    """After every step: the weights, whether the step was skipped, scale and learning rate."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.weights: list[Tensor] = []
        self.skipped: list[bool] = []
        self.scales: list[float] = []
        self.rates: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        self.weights.append(flat(self.trainer.model))
        self.skipped.append(accelerator.optimizer_step_was_skipped)
        self.scales.append(accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0)
        self.rates.append(lr_scheduler.get_last_lr()[0])


def run(
    method: dict[str, Any] | None,
    model: nn.Module | None = None,
    watch: transformers.TrainerCallback | None = None,
    data: list[dict[str, Any]] | None = None,
    **arguments: Any,
) -> Any:
    """Train; the callback that watched. Without a method it is transformers' own Trainer, without data `items`."""
    library = transformers if method is None else hf_sharpness
    watch = watch or Watch()
    defaults = {
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "logging_strategy": "no",
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
    }
    base = {"base_optim" if method is not None else "optim": arguments.pop("base", "adamw_torch")}
    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(output_dir=folder, **defaults | base | (method or {}) | arguments)
        model = model if model is not None else network()
        trainer = library.Trainer(model, args, train_dataset=data or items(), callbacks=[watch])
        watch.trainer = trainer
        trainer.train()
    return watch


def distance(ours: Any, reference: Any, start: Tensor) -> float:
    """How far apart two runs end, over the way that the weights went."""
    way = (reference.weights[-1] - start).norm()
    return float((ours.weights[-1] - reference.weights[-1]).norm() / way)


def even(name: str) -> dict[str, Any]:
    """What gives a method's every step two passes: none to check them, and no search."""
    return {"sam_check": "off"} | ({"xsam_alpha": 1.2} if name == "XSAM" else {})


class Count:
    """Counts passes, further ones too: what holds a lock is not put back between them (docs/repeated-passes.md)."""

    def __init__(self) -> None:
        self.seen: queue.Queue[None] = queue.Queue()

    def next(self) -> int:
        self.seen.put(None)
        return self.seen.qsize()


def judged(off: float, limit: float) -> str:
    """A distance in words; one beyond the limit is a failure."""
    words = "bit for bit" if off == 0 else f"distance {off:.1e} of the way"
    return words if off <= limit else f"FAILED: {words}, more than {limit:g}"
