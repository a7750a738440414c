"""Where weights and gradients of the base optimizer are: in the model's parameters, or where DeepSpeed has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..vectors import Vector, gradients, is_sharded, placement
from .parallel import drop_unreduced_gradients, rank_groups, sharded_modules, unreduced_gradients


class Weights:
    """The usual place: the parameters in the optimizer's groups, their gradients in ``.grad``.

    Args:
        model: the model that the closures call.
        optimizer: the base optimizer.

    Attributes:
        gradients_are_visible: every pass leaves them in ``p.grad`` of the model's parameters.
    """

    gradients_are_visible = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.sharded_modules = sharded_modules(model)
        self.weights_changed()  # an evaluation leaves gathered copies in the place of the parameters

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters in the base optimizer's groups, in their order."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def have_gradient(self) -> bool:
        """Whether a pass has left a gradient for any of them (where gradients are hidden: always)."""
        groups = self.optimizer.param_groups
        if not self.gradients_are_visible or any(
            p.grad is not None for group in groups for p in group["params"] if p.requires_grad
        ):
            return True
        return self.has_unseen_gradient()  # FSDP2 reduces it with a later micro-batch's

    def receivers(self) -> list[nn.Parameter]:
        """The parameters whose ``.grad`` a pass fills: the optimizer's, and others of the model."""
        found = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        for parameter in self.model.parameters():
            found.setdefault(id(parameter), parameter)
        return list(found.values())

    def read_by_others(self) -> list[nn.Parameter]:
        """The parameters whose ``.grad`` is read in every backward pass, which says nothing about the closures."""
        return []

    def has_unseen_gradient(self) -> bool:
        """Whether a gradient lies elsewhere than in ``.grad``, from a backward pass that no step knows of."""
        return bool(self.sharded_modules) and any(True for _ in unreduced_gradients(self.model))

    def hidden_passes(self) -> int:
        """How many backward passes there were whose gradients are not in ``p.grad``."""
        return 0

    def note_passes(self) -> None:
        """All backward passes until now are known."""

    def named(self) -> list[tuple[str, Tensor]]:
        """What is trained, with names for messages: its type is the one that a perturbation is rounded to."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def rank_groups(self) -> list[Any]:
        """The process groups whose ranks share one effective batch."""
        return rank_groups(self.model, self.parameters())

    def owners(self, params: Sequence[nn.Parameter]) -> Sequence[Any]:
        """For every parameter what ``vectors.norm`` takes as ``like``."""
        return params

    def shard_index(self) -> int:
        """Differs between ranks that hold different weights."""
        return torch.distributed.get_rank() if any(is_sharded(p) for p in self.parameters()) else 0

    def part_index(self) -> int:
        """The number of this rank's part where every tensor is a part of a longer one; otherwise 0."""
        return 0

    def clear_padding(self, params: Sequence[nn.Parameter], vector: Vector) -> None:
        """Zero the elements of a vector that belong to no weight."""

    def layout(self) -> str:
        """What this rank has of the weights, in words: equal where every rank holds the same part as before."""
        params = self.parameters()
        sizes = [torch.distributed.get_world_size(group) for group in self.rank_groups()]
        places = sorted({placement(p) for p in params if is_sharded(p)})
        ranks = f"{math.prod(sizes)} rank" + ("s" if sizes else "")
        return f"{ranks} (shard {self.shard_index()}, {', '.join(places)})" if places else ranks

    def seen_in_bfloat16(self, params: Sequence[nn.Parameter]) -> list[bool]:
        """For every parameter whether it is to move on the grid of bfloat16 numbers, by stochastic rounding."""
        return [p.dtype == torch.bfloat16 for p in params]

    def stepped_together(self, params: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The parameters, grouped by the calls of the base optimizer's ``step`` that one optimizer step makes."""
        return [params]

    def check_can_save(self) -> None:
        """Raise a RuntimeError if the weights cannot be read whole in the middle of a pass."""

    @property
    def binds_weights(self) -> bool:
        """Whether the names of parameters in the model are bound to other tensors within a pass (gathered ones)."""
        return bool(self.sharded_modules)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor that the optimizer does not step is nevertheless no state of a pass: a gathered weight."""
        return self.binds_weights and isinstance(tensor, nn.Parameter) and not is_sharded(tensor)

    def copies(self) -> Vector:
        """Further tensors that hold the weights: saved and put back with them."""
        return []

    def weights_changed(self) -> None:
        """The parameters were moved: drop or renew what was made from their old values. All ranks call it together."""
        for module in self.sharded_modules:
            module.reshard()

    def weights_put_back(self) -> None:
        """Parameters and copies have their saved values again: the same, without any communication."""
        self.weights_changed()

    def before_replay(self) -> None:
        """A pass over the whole batch begins, which is not the first of its step."""

    def after_pass(self) -> None:
        """A pass over the whole batch has ended: add its gradient to ``.grad``, if it is not there."""

    def drop_gradients(self) -> None:
        """Drop every gradient of the step under way, wherever it is, so that the next one begins without."""
        for parameter in self.receivers():
            parameter.grad = None
        drop_unreduced_gradients(self.model)

    def abandon(self) -> None:
        """The step was interrupted; weights and copies have been put back."""

    def finish(self) -> None:
        """The gradient for the base optimizer is in ``.grad``, the weights are as before the step."""

    def step(self) -> None:
        """The training step has ended: have the base optimizer step, where nobody else does."""


def placed_gradients(params: Sequence[Any]) -> Vector:
    """p.grad of parameters that all have one, as local tensors, each in the place that its parameter has."""
    for parameter in params:
        if is_sharded(parameter) and parameter.grad.placements != parameter.placements:
            # Tensor parallel: an embedding's gradient comes as partial sums.
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
    return gradients(params)
