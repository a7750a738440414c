"""Moving weights that the forward pass sees in bfloat16.

A step far smaller than the spacing of bfloat16 numbers is lost where ``w + step`` is rounded to the nearest of them
and ``w`` is one. Rounded up or down at random, with the distance as probability, the sum is right on average: weights
move as a whole by what was asked for, plus noise that is independent from weight to weight and from step to step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..vectors import Vector, add_


class Noise:
    """Random bits from generators of its own: the random numbers of the training are left alone.

    Args:
        seed: what the bits depend on; the same numbers give the same bits.
    """

    def __init__(self, *seed: int) -> None:
        self.seed = int.from_bytes(hashlib.blake2b(repr(seed).encode(), digest_size=7).digest(), "big")
        self.generators: dict[torch.device, torch.Generator] = {}

    def sixteen_bits(self, like: Tensor) -> Tensor:
        """Independent integers from 0 to 2^16 - 1, as int32."""
        generator = self._generator(like.device)
        return torch.randint(0, 2**16, like.shape, generator=generator, dtype=torch.int32, device=like.device)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Independent standard normal numbers."""
        return torch.randn(shape, generator=self._generator(device), dtype=dtype, device=device)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


def move_(
    target: Vector, start: Vector, step: Vector, coarse: Sequence[bool], noise: Noise, factor: float = 1.0
) -> None:
    """target <- start + factor * step, on the grid of bfloat16 numbers where the forward pass sees those only.

    Args:
        target: ``start`` or ``step`` themselves.
        start: the weights.
        step: how far they are to move.
        coarse: for every tensor whether the sum is rounded stochastically to bfloat16 (whatever its type), beginning
            from the bfloat16 number nearest to the weight, which is what the forward pass sees of it.
        noise: for the rounding.
        factor: of the step.
    """
    fine = [i for i, is_coarse in enumerate(coarse) if not is_coarse]
    other, scale = (step, factor) if target is start else (start, 1.0)
    if target is step and factor != 1.0:
        raise ValueError(f"factor={factor!r} is not valid where the step is overwritten: must be 1")
    add_([target[i] for i in fine], [other[i] for i in fine], scale)
    for i, is_coarse in enumerate(coarse):
        if is_coarse:
            for into, weight, change in _in_parts(target[i], start[i], step[i]):
                exact = weight.bfloat16().float().add_(change, alpha=factor)
                into.copy_(rounded_to_bfloat16(exact, noise))


def rounded_to_bfloat16(exact: Tensor, noise: Noise) -> Tensor:
    """float32 numbers, each rounded to one of its two bfloat16 neighbours, the nearer the likelier; still float32."""
    bits = exact.view(torch.int32)
    # bfloat16 is the upper half of float32: a carry into it rounds up. Not for NaN, whose bits may overflow.
    rounded = (bits + noise.sixteen_bits(bits)) & -(2**16)
    return torch.where(exact.isfinite(), rounded.view(torch.float32), exact)


def _in_parts(*tensors: Tensor, elements: int = 2**24) -> list[tuple[Tensor, ...]]:
    """Views of tensors of one shape, small enough for float32 copies of them not to count."""
    if not all(t.is_contiguous() for t in tensors):
        return [tensors]
    return list(zip(*(t.view(-1).split(elements) for t in tensors), strict=True))
