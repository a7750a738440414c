"""Whose gradient makes the perturbation, and which passes are therefore reduced over ranks (m-sharpness)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .. import vectors
from ..methods import METHODS, Method
from .buckets import average_over_ranks_
from .comm_hooks import HookMemory, hook_states
from .parallel import (
    data_parallel_module,
    gradients_unreduced,
    largest_over_ranks,
    sharded_modules,
    shards_reduced,
)

IN_JOIN = (
    "within torch.distributed.algorithms.Join, whose ranks that have run out of data answer DDP's own communication "
    "and no other, sharpness-aware steps are those of {methods} in scope='global' with fraction=1, without gradients "
    "of earlier backward passes: use those, or give all ranks equally many batches (drop_last=True, a "
    "DistributedSampler)"
)


def _has_collectives(method: type[Method]) -> bool:
    return method.probes is not Method.probes or method.replays_of is not Method.replays_of


def _refused_in_join() -> RuntimeError:
    return RuntimeError(IN_JOIN.format(methods=", ".join(n for n, cls in METHODS.items() if not _has_collectives(cls))))


class Scope:
    """A scope on one model: says of every pass whether its backward reduces gradients over ranks.

    Args:
        name: a key of ``methods.SCOPES``.
        model: the model that the closures call.
        no_sync: makes a context in which a backward pass does not reduce gradients. None: DDP's and FSDP2's own.
        method: the method.
        in_parts: replays go over a part of the batch.

    Attributes:
        has_to_average: in scope ``device``, the last replay's backward is not to reduce the gradient.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        no_sync: Callable[[], AbstractContextManager[None]] | None,
        method: Method,
        in_parts: bool = False,
    ) -> None:
        self.name = name
        self.no_sync = no_sync or (lambda: gradients_unreduced(model))
        self.adds_after_step = method.adds_after_step
        self.decides_replays = method.decides_replays
        # A method that probes compares losses over ranks; a part's gradient may have to be averaged by itself.
        self.has_collectives = in_parts or _has_collectives(type(method))
        self.model = model
        self.data_parallel = data_parallel_module(model)
        self.has_to_average = False
        self.hook_memory: HookMemory | None = None

    def begin_step(self) -> None:
        """A step's first pass is about to be made.

        Raises:
            RuntimeError: it cannot be made in torch's ``Join``.
        """
        wrapper = self.data_parallel
        # Private in torch: nothing public tells that `Join` is on.
        if wrapper is not None and wrapper._join_config.enable and (self.averages_itself or self.has_collectives):
            raise _refused_in_join()
        self.hook_memory = HookMemory(wrapper) if wrapper is not None and hook_states(wrapper) else None

    def before_replay(self) -> None:
        """A further pass is about to be made: DDP's hooks begin it as they did the first."""
        if self.hook_memory is not None:
            self.hook_memory.restore()

    @property
    def reduces_alone(self) -> bool:
        """Whether a pass that adds to a reduced gradient is to be reduced without it.

        Hooks with a memory compress what they reduce; in ``Join`` ranks without data add zeros to it.
        """
        wrapper = self.data_parallel
        joins = wrapper is not None and wrapper._join_config.enable
        return self.reduces_ascent and (joins or self.hook_memory is not None)

    @property
    def is_each_micro_batch(self) -> bool:
        """Whether the method runs on every micro-batch alone."""
        return self.name == "micro_batch"

    @property
    def reduces_ascent(self) -> bool:
        """Whether the gradients that make the perturbation are reduced over ranks."""
        return self.name == "global"

    @property
    def gradients_are_views(self) -> bool:
        """Whether DDP holds the gradients in buckets of its own, so that ``p.grad`` must not be taken away."""
        return getattr(self.data_parallel, "gradient_as_bucket_view", False)

    @property
    def averages_itself(self) -> bool:
        """Whether gradients are averaged over ranks after the last pass instead of by its backward."""
        wrapper = self.data_parallel
        if wrapper is None:
            return False
        # DDP that looks for unused parameters has marked those that the ascent used, which a replay need not use.
        afterwards = self.adds_after_step or self.decides_replays or self.has_to_average
        return self.is_each_micro_batch or (self.name == "device" and (afterwards or wrapper.find_unused_parameters))

    @property
    def reduces_last_replay(self) -> bool:
        """Whether the ascent is rank-local and the last replay's backward reduces the gradient over ranks."""
        return self.data_parallel is not None and self.name == "device" and not self.averages_itself

    def pass_context(self, reduce: bool) -> AbstractContextManager[None]:
        """The context for one micro-batch's forward and backward: gradients are reduced over ranks, or not."""
        return contextlib.nullcontext() if reduce else self.no_sync()

    def first_pass_context(self, last: bool, ends_part: bool) -> AbstractContextManager[None]:
        """The context for a micro-batch's first pass.

        Args:
            last: it is the step's last micro-batch.
            ends_part: its gradient is then to be in ``p.grad``. DDP's stays each rank's own; FSDP2 has its shard of it
                only once it is reduced.
        """
        if ends_part and sharded_modules(self.model):
            return shards_reduced(self.model)
        return self.pass_context(last and self.reduces_ascent)

    def averaged(self, earlier: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """What an earlier backward left, averaged over the ranks of the DDP model, as DDP does with a gradient.

        All ranks must have something, or none. Inside the user's own ``no_sync`` it stays each rank's own.

        Args:
            earlier: by parameter; spent.
        """
        wrapper = self.data_parallel
        if not earlier or wrapper is None or self.averages_itself or not wrapper.require_backward_grad_sync:
            return earlier
        if wrapper._join_config.enable:
            raise _refused_in_join()
        params = self._on_any_rank([p for p in wrapper.parameters() if p.requires_grad], lambda p: p in earlier)
        for parameter in params:
            if parameter not in earlier:
                earlier[parameter] = torch.zeros_like(parameter)
        average_over_ranks_(vectors.local([earlier[p] for p in params]), wrapper.process_group)
        return earlier

    def _on_any_rank(self, params: list[nn.Parameter], present: Callable[[nn.Parameter], bool]) -> list[nn.Parameter]:
        """Those of the parameters for which ``present`` is true on some rank of the DDP model."""
        assert self.data_parallel is not None
        found = torch.tensor([present(p) for p in params], dtype=torch.int32, device=params[0].device)
        largest_over_ranks(found, [self.data_parallel.process_group])
        return [p for p, by_any in zip(params, found.tolist(), strict=True) if by_any]

    def average(self, params: list[nn.Parameter], terms: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Average p.grad, and the terms for after the step, over the ranks of the DDP model.

        Args:
            params: all trainable parameters; those that no rank used are left alone.
            terms: by parameter, this rank's.

        Returns:
            The terms of all parameters that any rank used.
        """
        assert self.data_parallel is not None
        group = self.data_parallel.process_group
        params = self._on_any_rank(params, lambda p: p.grad is not None)
        for parameter in params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        average_over_ranks_(vectors.gradients(params), group)
        if not self.adds_after_step:
            return terms
        terms = {p: terms.get(p, torch.zeros_like(p)) for p in params}
        average_over_ranks_(list(terms.values()), group)
        return terms
