"""The first examples of a micro-batch (``sam_fraction`` without gradient accumulation)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

PACKED = frozenset({"position_ids", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "seq_idx"})
"""What comes with several examples in one row."""


class NoExamples(ValueError):
    """A batch of which no examples can be taken; says what is in the way."""


def number_of_examples(inputs: Any) -> int:
    """How many examples a micro-batch has: the first dimension of all of its tensors.

    Raises:
        NoExamples: they differ in it, or something else is in the batch.
    """
    found: dict[int, str] = {}
    for name, value in _leaves("the batch", inputs):
        if isinstance(value, Tensor) or hasattr(value, "__array__"):
            if not getattr(value, "ndim", 0):
                raise NoExamples(f"{name} has no dimension")
            found.setdefault(int(value.shape[0]), name)
        elif not isinstance(value, (bool, int, float, str, bytes, list, tuple, type(None))):
            raise NoExamples(f"{name} is a {type(value).__name__}")
    if not found:
        raise NoExamples("it has no tensors")
    if len(found) > 1:
        (one, first), (another, second) = list(found.items())[:2]
        raise NoExamples(f"the first dimension of {first} is {one}, and that of {second} is {another}")
    (number,) = found
    for name, value in _leaves("the batch", inputs):
        if isinstance(value, (list, tuple)) and len(value) != number:
            raise NoExamples(
                f"{name} has {len(value)} elements, and the first dimension of {found[number]} is {number}"
            )
    if number == 1 and isinstance(inputs, Mapping) and not PACKED.isdisjoint(inputs):
        raise NoExamples("it has a single row, with the positions of several examples in it (packed, or padding-free)")
    return number


def first_examples(inputs: Any, number: int) -> Any:
    """The micro-batch with as many examples; ``number_of_examples`` has been asked."""
    if isinstance(inputs, MutableMapping):
        result = type(inputs)() if type(inputs) is not dict else {}
        for key, value in inputs.items():
            result[key] = first_examples(value, number)
        return result
    if isinstance(inputs, Mapping):
        make: Any = type(inputs)
        return make({key: first_examples(value, number) for key, value in inputs.items()})
    if isinstance(inputs, (Tensor, list, tuple)) or hasattr(inputs, "__array__"):
        return inputs[:number]
    return inputs


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """What mappings hold; lists as they are: one element for each example."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(str(key), inner)]
    return [(name, value)]
