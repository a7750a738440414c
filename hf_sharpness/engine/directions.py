"""Random directions for a method, from generators of their own: the random numbers of the training are left alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import vectors
from ..vectors import Vector
from .overlap import Memory
from .parallel import largest_over_ranks
from .rounding import Noise
from .weights import Weights


class Directions:
    """Draws vectors of independent standard normal numbers.

    Where all ranks climb together, replicas draw the same vector, and ranks with shards their shards of one, whatever
    the number of ranks (under DeepSpeed of one that depends on it). Where they climb alone, each draws its own.

    Args:
        weights: where the weights are.
        together: whether all ranks climb together.

    Attributes:
        seed: what the numbers depend on, beside step, draw and parameter: torch's initial seed at the first draw.
        draws: how many have been made in this step.
    """

    def __init__(self, weights: Weights, together: bool) -> None:
        self.weights = weights
        self.together = together
        self.seed: int | None = None
        self.draws = 0

    def draw(self, number: int, params: list[nn.Parameter], memory: Memory) -> Vector:
        """Another vector for the parameters.

        Args:
            number: the number of the step.
            params: the parameters that are in use.
            memory: their memory; where parameters overlap, every number in it is normal, and their entries add up.
        """
        self.draws += 1
        seed = self._seed(params[0].device)
        pieces = []
        for piece, member in zip(memory.pieces, memory.members, strict=True):
            parameter: Any = params[member]
            noise = Noise(seed, number, self.draws, memory.in_use[member], self.weights.part_index())
            if vectors.is_sharded(parameter):
                whole = noise.normal(parameter.shape, parameter.dtype, piece.device)
                pieces.append(vectors.local([vectors.shard_of(whole, parameter)])[0])
            else:
                pieces.append(noise.normal(piece.shape, piece.dtype, piece.device))
        self.weights.clear_padding(params, pieces)
        if not memory.flat:
            return pieces
        shares = memory.folded([torch.ones_like(t) for t in vectors.local(params)])
        return vectors.clone(memory.views([piece / share for piece, share in zip(pieces, shares, strict=True)]))

    def _seed(self, device: torch.device) -> int:
        if self.seed is None:
            seed = torch.initial_seed() % 2**62
            groups = self.weights.rank_groups()
            if self.together and groups:
                seed = int(largest_over_ranks(torch.tensor(seed, device=device), groups))
            elif groups:
                seed = (seed + torch.distributed.get_rank() * 0x9E3779B97F4A7C15) % 2**62
            self.seed = seed
        return self.seed
