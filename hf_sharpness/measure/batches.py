"""The fixed examples on which a loss is measured, read again in every pass, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import MeasureError


class Batches:
    """Some examples of a data set, in batches; each pass reads them anew, so that one batch is in memory at a time.

    Args:
        dataset: has a length, and gives an example by its number.
        collate: makes a batch of a list of examples.
        size: examples in a batch.
        numbers: of the examples, in order. Default None: all.
        prepare: what is done to a batch last, such as moving it to the device. Default None: nothing.
        rank: this process's number where several share the work: every world-th batch is its own. Default 0.
        world: how many they are. All get as many batches; what some lack is filled up by batches that do not count.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        size: int,
        numbers: Sequence[int] | None = None,
        prepare: Callable[[Any], Any] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset, self.collate, self.prepare = dataset, collate, prepare
        chosen = list(range(len(dataset)) if numbers is None else numbers)
        if not chosen:
            raise MeasureError("there are no examples to measure on: the data set is empty")
        batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        own = batches[rank::world]
        self.examples = len(chosen)
        self.counted = len(own)
        self.own = own + [batches[0]] * (-(-len(batches) // world) - len(own))

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        """The batches of this process, and whether they count."""
        for place, numbers in enumerate(self.own):
            batch = self.collate([self.dataset[number] for number in numbers])
            yield (batch if self.prepare is None else self.prepare(batch)), place < self.counted


def some_of(length: int, most: int | None, seed: int = 0) -> list[int]:
    """The numbers of at most so many examples, drawn by a seed from all `length`, in order; None: of all of them."""
    if most is None or most >= length:
        return list(range(length))
    return sorted(int(number) for number in np.random.default_rng(seed).permutation(length)[:most])


def prepared_for(model: nn.Module) -> Callable[[Any], Any]:
    """Moves a batch to where the model is, and its floating-point tensors to the type of the weights."""
    weight = next(model.parameters())

    def prepare(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        if hasattr(value, "items"):
            return {key: prepare(entry) for key, entry in value.items()}
        return type(value)(prepare(entry) for entry in value) if isinstance(value, (list, tuple)) else value

    return prepare


def terms_in(inputs: Any, model: nn.Module) -> int:
    """Over how many terms the mean loss of a batch is a mean: its labels, or the tokens that have one.

    Args:
        inputs: the batch. Labels of -100 count for nothing; the first of a sequence is predicted by no causal model.
        model: the model.
    """
    labels = inputs.get("labels") if hasattr(inputs, "get") else None
    if isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point():
        shifted = labels[:, 1:] if type(model).__name__.endswith("CausalLM") else labels
        return int((shifted != -100).sum())
    if isinstance(labels, Tensor) and labels.ndim:
        return len(labels)
    values = inputs.values() if hasattr(inputs, "values") else [inputs]
    sizes = [len(value) for value in values if isinstance(value, Tensor) and value.ndim]
    if not sizes:
        raise MeasureError("a batch holds no tensor, so that its size is not known")
    return sizes[0]


def errors_in(logits: Any, labels: Any) -> int | None:
    """How many of a batch are given a wrong class; None where it is no classification of whole examples."""
    if isinstance(logits, (list, tuple)) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.shape[1] < 2:
        return None
    return int((logits.argmax(-1) != labels).sum())


def summed(values: Sequence[float], groups: list[Any], device: torch.device) -> list[float]:
    """Sums over the ranks of process groups that span a grid."""
    if not groups:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    for group in groups:
        torch.distributed.all_reduce(total, group=group)
    return total.tolist()
