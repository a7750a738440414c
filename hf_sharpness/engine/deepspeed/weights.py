"""DeepSpeed's ZeRO stages 1, 2 and 3: where its weights and gradients are, and when it steps.

All that is private in DeepSpeed is touched in this file. Read off DeepSpeed 0.19.8; the tests in
``tests/modes/test_mode_deepspeed.py`` run it and fail where a name moves or means something else.

What the base optimizer steps is, on each rank, one part of the fp32 weights, flattened: one tensor for each parameter
group (ZeRO-1 and 2) or sub-group (ZeRO-3). These parts are the parameters that the engine moves; a part's ``.grad`` is
the part of the averaged gradient. The model computes with other tensors, which follow the parts when they are moved:
the flat weights that every rank holds whole (ZeRO-1 and 2), the shards that are gathered layer by layer (ZeRO-3).

DeepSpeed's public ``safe_get_*`` and ``safe_set_*`` would not do: they work on one parameter after the other with a
collective for each, the model does not follow what they set, and ZeRO-1 and 2 have no local ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...vectors import Part, Vector
from ..weights import Weights
from .step import DeferredStep

NO_LAST_BACKWARD = (
    "the last micro-batch of an optimizer step ran no backward pass, so that DeepSpeed has not averaged the gradients "
    "of those before it: run self.accelerator.backward(loss) in every micro-batch (on 0 where there is no loss)"
)


class ZeroWeights(Weights):
    """The parts of the fp32 weights that a DeepSpeed engine's optimizer steps on this rank.

    Args:
        engine: the ``DeepSpeedEngine``.
    """

    gradients_are_visible = False

    def __init__(self, engine: Any) -> None:
        self.engine = self.model = engine
        self.zero = engine.optimizer
        self.optimizer = self.zero.optimizer
        # The ranks over which gradients are averaged and weights are split.
        self.group = self.zero.dp_process_group
        self.part = Part(self.group)
        self.deferred: DeferredStep | None = None
        self.backwards_known = 0
        self.waits = False
        # DeepSpeed splits the gradient of a part into tensors, one for each parameter in it; some are padding.
        self.sizes: list[list[int]] = []
        self.padding: list[list[bool]] = []

    def parameters(self) -> list[nn.Parameter]:
        return self.parts

    def read_by_others(self) -> list[nn.Parameter]:
        return [*self.engine.module.parameters(), *self.parts]

    def hidden_passes(self) -> int:
        return 0 if self.deferred is None else self.deferred.backwards

    def has_unseen_gradient(self) -> bool:
        return self.hidden_passes() != self.backwards_known

    def note_passes(self) -> None:
        self.backwards_known = self.hidden_passes()

    def receivers(self) -> list[nn.Parameter]:
        return []  # DeepSpeed collects gradients elsewhere, see `DeferredStep`

    def named(self) -> list[tuple[str, Tensor]]:
        return [(f"(part {index} of DeepSpeed's master weights)", part) for index, part in enumerate(self.parts)]

    def rank_groups(self) -> list[Any]:
        return [self.group]

    def owners(self, params: Sequence[nn.Parameter]) -> Sequence[Any]:
        return [self.part] * len(params)

    def shard_index(self) -> int:
        return torch.distributed.get_rank(self.group)

    def layout(self) -> str:
        return (
            f"{torch.distributed.get_world_size(self.group)} ranks (part {self.shard_index()}, {type(self).__name__})"
        )

    def part_index(self) -> int:
        return self.shard_index()

    def seen_in_bfloat16(self, params: Sequence[nn.Parameter]) -> list[bool]:
        # With bf16.enabled the parts begin as the model's own bfloat16 weights, and every pass sees them in bfloat16.
        return [self.zero.dtype == torch.bfloat16] * len(params)

    @property
    def binds_weights(self) -> bool:
        return True

    def is_weight(self, tensor: Tensor) -> bool:
        """The model's trainable parameters follow the parts; ZeRO-3 gathers the frozen ones as well."""
        return isinstance(tensor, nn.Parameter) and (tensor.requires_grad or hasattr(tensor, "ds_id"))

    def stepped_together(self, params: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        return [[part] for part in params]

    def loss_scale(self) -> Callable[[], Tensor] | None:
        """Returns the factor on the loss where DeepSpeed's fp16 scales it."""
        if self.zero.dtype != torch.float16:
            return None
        return lambda: torch.tensor(float(self.zero.loss_scale), device=self.parts[0].device)

    def before_replay(self) -> None:
        self.drop_gradients()

    def before_backward(self) -> None:
        """A backward begins, which may be one of several in a micro-batch: their gradients are to add up."""

    def after_pass(self) -> None:
        """Move the gradient that DeepSpeed has averaged into the parts' ``.grad``."""
        # Set by DeepSpeed at the boundary of an accumulation: for every part a list of tensors.
        averaged = [self.zero.averaged_gradients.get(index) for index in range(len(self.parts))]
        if any(tensors is None for tensors in averaged):
            raise RuntimeError(NO_LAST_BACKWARD)
        self.sizes = [[t.numel() for t in tensors] for tensors in averaged]
        # A mark that ZeRO-1 and 2 leave out of the norm.
        self.padding = [[getattr(t, "_zero_padding", False) for t in tensors] for tensors in averaged]
        for part, tensors in zip(self.parts, averaged, strict=True):
            gradient = torch.cat([t.reshape(-1).to(part.dtype) for t in tensors])
            if part.grad is None:
                part.grad = gradient
            else:
                part.grad.add_(gradient)
        self.drop_gradients()

    def abandon(self) -> None:
        self.note_passes()
        self.sizes, self.waits = [], False
        for part in self.parts:
            part.grad = None
        self.drop_gradients()  # of earlier micro-batches, which no replay will go through any more

    def finish(self) -> None:
        """Hand the parts' gradient to DeepSpeed, which is to step with it."""
        self.note_passes()
        if self.sizes:  # a step of the base optimizer's own leaves all to DeepSpeed
            self._put_gradients()
        self.waits = True

    def step(self) -> None:
        """Have DeepSpeed step: clip, update, and renew the model's weights."""
        if self.waits:
            self.sizes, self.waits = [], False
            self.engine.step()

    def _put_gradients(self) -> None:
        for index, part in enumerate(self.parts):
            tensors = list(part.grad.split(self.sizes[index]))
            for tensor, padding in zip(tensors, self.padding[index], strict=True):
                if padding:
                    tensor._zero_padding = True
            self.zero.averaged_gradients[index] = tensors
            part.grad = None

    def drop_gradients(self) -> None:
        """Make DeepSpeed forget every gradient it holds, so that the next pass begins anew."""
        # Also resets ZeRO-3's count of micro-batches: the first one overwrites, the others add.
        self.zero.zero_grad(set_to_none=True)

    @property
    def parts(self) -> list[Any]:
        """The flat fp32 tensors that the base optimizer steps on this rank."""
        raise NotImplementedError


class Zero12Weights(ZeroWeights):
    """ZeRO-1 and 2: every rank holds the model's weights whole, as one flat tensor for each parameter group."""

    @property
    def parts(self) -> list[Any]:
        return self.zero.single_partition_of_fp32_groups

    def before_backward(self) -> None:
        # A second one at the boundary would put its own gradient in the place of that of the first.
        if self._have_averaged():
            self.after_pass()

    def _have_averaged(self) -> bool:
        return self.zero.averaged_gradients.get(0) is not None

    def finish(self) -> None:
        if self.sizes and self._have_averaged():  # a step of the base optimizer's own, of several backwards
            self.after_pass()
        super().finish()

    def copies(self) -> Vector:
        return [flat.detach() for flat in self.zero.bit16_groups_flat]

    def weights_changed(self) -> None:
        self.zero.update_lp_params()  # each part cast to the model's type, and gathered from all ranks

    def weights_put_back(self) -> None:
        """The flat weights are copies, put back as the parts are."""

    def clear_padding(self, params: Sequence[nn.Parameter], vector: Vector) -> None:
        places = {id(part): index for index, part in enumerate(self.parts)}
        for parameter, tensor in zip(params, vector, strict=True):
            padding = torch.ones_like(tensor, dtype=torch.bool)
            for weight in self.zero.bit16_groups[places[id(parameter)]]:
                if weight._hp_mapping is not None:  # some of the weight is in this rank's part
                    place = weight._hp_mapping.hp_fragment_address
                    padding[place.start : place.start + place.numel] = False
            tensor.masked_fill_(padding, 0.0)

    def drop_gradients(self) -> None:
        super().drop_gradients()
        for index in range(len(self.parts)):
            self.zero.averaged_gradients[index] = None
            self.zero.all_grad_tensors[index] = None  # what earlier micro-batches have accumulated


class Zero3Weights(ZeroWeights):
    """ZeRO-3: every rank holds shards of the model's weights, views of one flat tensor for each sub-group."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self._clear_padding()

    @property
    def parts(self) -> list[Any]:
        return self.zero.fp32_partitioned_groups_flat

    def copies(self) -> Vector:
        # In float32 DeepSpeed may have one tensor serve as both.
        pairs = zip(self.zero.fp16_partitioned_groups_flat, self.parts, strict=True)
        return [flat.detach() for flat, part in pairs if flat.data_ptr() != part.data_ptr()]

    def weights_changed(self) -> None:
        self.weights_put_back()
        for index in range(len(self.parts)):
            # What its step does: the shards take the values of the part.
            self.zero._reassign_or_swap_out_partitioned_parameters(index)

    def weights_put_back(self) -> None:
        # Frees what is gathered, parameters that "persist" included: the next forward gathers them again. Local.
        self.zero._partition_all_parameters()

    def check_can_save(self) -> None:
        raise RuntimeError(
            "ZeRO-3 gathers the weights from all ranks to save them, which is not possible in the middle of a pass: "
            "save when the step has ended (in a callback's on_step_end)"
        )

    def drop_gradients(self) -> None:
        super().drop_gradients()
        # A parameter without a gradient in a pass would keep the one of an earlier pass.
        self.zero.grad_partitions_flat_buffer.zero_()

    def step(self) -> None:
        perturbed = bool(self.sizes)
        super().step()
        if perturbed:
            self.drop_gradients()

    def clear_padding(self, params: Sequence[nn.Parameter], vector: Vector) -> None:
        places = {id(part): index for index, part in enumerate(self.parts)}
        for parameter, tensor in zip(params, vector, strict=True):
            self._clear_ends(places[id(parameter)], tensor)

    def _clear_padding(self) -> None:
        """Zero the ends of shards that no weight fills: DeepSpeed allocates them without a value."""
        for index, (part, flat) in enumerate(zip(self.parts, self.zero.fp16_partitioned_groups_flat, strict=True)):
            self._clear_ends(index, part.detach())
            self._clear_ends(index, flat.detach())

    def _clear_ends(self, index: int, tensor: Tensor) -> None:
        rank, start = torch.distributed.get_rank(self.group), 0
        for parameter in self.zero.fp16_groups[index]:
            size = parameter.partition_numel()
            used = min(max(parameter.ds_numel - rank * size, 0), size)
            tensor[start + used : start + size].zero_()
            start += size
