"""Tiny models and data for the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Batch = dict[str, Tensor]


class Net(nn.Module):
    """Two linear layers around any middle layer; the mean cross entropy comes as a dict or a tuple."""

    main_input_name = "x"

    def __init__(
        self, middle: Callable[[], nn.Module] = nn.Identity, output: str = "dict", checkpointing: bool = False
    ):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.middle, self.last = nn.Linear(6, 8), middle(), nn.Linear(8, 3)
        self.output, self.checkpointing = output, checkpointing

    def features(self, x: Tensor) -> Tensor:
        return self.middle(torch.tanh(self.first(x)))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor] | tuple[Tensor, ...]:
        logits = self.last(
            checkpoint(self.features, x, use_reentrant=False) if self.checkpointing else self.features(x)
        )
        if labels is None:
            return {"logits": logits} if self.output == "dict" else (logits,)
        loss = F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if self.output == "dict" else (loss, logits)

    def num_parameters(self, exclude_embeddings: bool = False) -> int:
        return sum(p.numel() for p in self.parameters())

    def floating_point_ops(self, inputs: Batch) -> int:
        """What transformers before 5.x asked the model."""
        return 6 * inputs["x"].numel() * self.num_parameters()


class TinyLM(nn.Module):
    """Predicts the next token from the current one; takes `num_items_in_batch` as transformers' models do."""

    main_input_name = "input_ids"

    def __init__(self, tied: bool = False):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed, self.mix, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> Batch:
        logits = self.head(torch.tanh(self.mix(self.embed(input_ids))))[:, :-1].flatten(0, 1)
        targets = labels[:, 1:].flatten()
        if num_items_in_batch is None:
            return {"loss": F.cross_entropy(logits, targets), "logits": logits}
        return {"loss": F.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch, "logits": logits}


class ReboundBatchNorm(nn.Module):
    """A hand-written BatchNorm that binds new tensors to its buffers, and counts in a Python-free buffer too."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.calls = self.calls + 1
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


class Record:
    """Sees every pass. It holds a lock, as loggers do, so that no pass takes back what another wrote to it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.forwards = self.backwards = 0
        self.items: list[Any] = []

    def __deepcopy__(self, memo: Any) -> Record:
        return Record()


class MaskRecorder(nn.Module):
    """Dropout that keeps every mask it drew in train mode."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p, self.record = p, Record()

    @property
    def masks(self) -> list[Tensor]:
        return self.record.items

    def forward(self, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones_like(x), self.p, self.training)
        if self.training:
            self.masks.append(mask)
        return x * mask


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.hook = hook
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.hook(grad), None


class Saboteur(nn.Module):
    """Calls `on_forward(n)` in train-mode forward number n, and passes the gradient of backward number n through
    `on_backward(n, gradient)`."""

    def __init__(
        self,
        on_forward: Callable[[int], None] = lambda n: None,
        on_backward: Callable[[int, Tensor], Tensor] = lambda n, gradient: gradient,
    ):
        super().__init__()
        self.on_forward, self.on_backward = on_forward, on_backward
        self.record = Record()

    @property
    def forwards(self) -> int:
        return self.record.forwards

    @property
    def backwards(self) -> int:
        return self.record.backwards

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.record.forwards += 1
        self.on_forward(self.forwards)
        return _Backward.apply(x, self._gradient) if torch.is_grad_enabled() else x

    def _gradient(self, gradient: Tensor) -> Tensor:
        self.record.backwards += 1
        return self.on_backward(self.backwards, gradient)


def batch_norm_2d() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm2d(2), nn.Flatten())


BUFFERED: dict[str, Callable[[], nn.Module]] = {
    "batch_norm_1d": lambda: nn.BatchNorm1d(8),
    "batch_norm_2d": batch_norm_2d,
    "batch_norm_cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "rebound_batch_norm": lambda: ReboundBatchNorm(8),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
    "spectral_parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
}


def classification(n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Batch]:
    """Two noisy clusters per class, as a list of items."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    labels = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    return [{"x": row.to(dtype), "labels": label} for row, label in zip(x, labels, strict=True)]


def sentences(n: int, length: int = 7, seed: int = 2) -> list[Batch]:
    """Token sequences of which a different, sometimes large, part is no target (-100)."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(n):
        tokens = torch.randint(0, 11, (length,), generator=generator)
        labels = tokens.clone()
        labels[: index % (length - 1)] = -100
        items.append({"input_ids": tokens, "labels": labels})
    return items


def collate(items: Sequence[Batch]) -> Batch:
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def accumulate(model: nn.Module, batch: Batch, parts: int) -> Tensor:
    """Forward and backward of one of `parts` micro-batches; its share of the mean loss."""
    output = model(**batch)
    loss = (output["loss"] if isinstance(output, dict) else output[0]) / parts
    loss.backward()
    return loss.detach()


def steps_of(items: Sequence[Batch], size: int, accumulation: int = 1, epochs: int = 1) -> list[list[Batch]]:
    """The optimizer steps of a run in order: lists of micro-batches of `size`, the last of an epoch maybe shorter."""
    batches = [collate(items[start : start + size]) for start in range(0, len(items), size)]
    epoch = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
    return epoch * epochs


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def exact_hessian(model: nn.Module, batch: Batch) -> Tensor:
    """The Hessian of the loss by double backward, a row for each weight in the order of the parameters."""
    params = list(model.parameters())
    slope = torch.autograd.grad(model(**batch)["loss"], params, create_graph=True)
    rows = []
    for entry in torch.cat([g.reshape(-1) for g in slope]):
        row = torch.autograd.grad(entry, params, retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(params, row, strict=True)])
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).detach()
