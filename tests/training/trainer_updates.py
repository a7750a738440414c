"""What the tests of a Trainer's updates share: the float64 reference of a run, and the comparison with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import Base, Record, Spec, by_name, linear_schedule, reference_run
from torch import Tensor, nn

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SCHEDULE = {"lr_scheduler_type": "linear", "warmup_steps": 3}
ONE_OF_EACH = by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3")
every_method = pytest.mark.parametrize("spec", ONE_OF_EACH, ids=str)


def decay(model: nn.Module, weight_decay: float) -> Tensor:
    """transformers decays no bias."""
    return torch.cat(
        [
            torch.full((p.numel(),), 0.0 if name.endswith("bias") else weight_decay, dtype=torch.float64)
            for name, p in model.named_parameters()
        ]
    )


def reference(model: nn.Module, steps: Any, spec: Spec, base: Base, epoch: int, **options: Any) -> list[Record]:
    """The run with a linear schedule, a warm-up of three steps and `epoch` steps an epoch."""
    lrs = linear_schedule(base.lr, 3, len(steps))
    options = {"max_norm": 0.5, "epoch_starts": range(0, len(steps), epoch)} | options
    return reference_run(
        model, steps, spec.reference(), base.reference(decay(model, base.weight_decay)), lrs, **options
    )


def assert_same(weights: list[Tensor], records: list[Record], **tolerance: float) -> None:
    assert len(weights) == len(records)
    expected = torch.stack([record.weights for record in records])
    torch.testing.assert_close(torch.stack(weights).double(), expected, **(tolerance or EXACT))


def counting_targets() -> type:
    """TinyLM is no transformers model, so its Trainer has to be told that the first label is no target."""
    from hf_sharpness import Trainer

    class Counting(Trainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
            batches, _ = super().get_batch_samples(*args, **kwargs)
            return batches, sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)

    return Counting
