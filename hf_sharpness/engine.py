"""Puts a sharpness-aware method between the backward pass and the base optimizer's step.

The engine knows torch only. The base optimizer stays an ordinary one: the engine decides what is in ``p.grad`` when the
ordinary clipping and ``optimizer.step()`` run, and adds decoupled WSAM's term in the optimizer's post-step hook.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from . import vectors, zero
from .after_step import AfterStep
from .methods import Method
from .passes import Closure, Passes
from .rounding import Noise
from .snapshots import BufferState, RandomState, accelerators_of
from .stores import Store
from .support import (
    base_optimizer,
    check_supported,
    data_parallel_module,
    gradients_unreduced,
    scales_per_coordinate,
)


class Engine:
    """Runs one method on one model and its base optimizer.

    One optimizer step is ``begin()``, ``record(closure, last)`` for every micro-batch, ``finish()``; then the caller
    clips, calls ``optimizer.step()`` and sets the gradients to None or zero as ever.

    Args:
        method: the method with its hyper-parameters.
        model: the model that the closures call (in DDP, sharded by FSDP2, or neither).
        optimizer: the base optimizer. The parameters in its groups that get a gradient are perturbed.
        scope: whose gradient makes the perturbation, a key of ``support.SCOPES``.
        loss_scale: returns the factor by which the closures scale their loss (a ``GradScaler``'s), as a tensor; None
            where they do not. With it the engine looks at every ascent whether the gradient overflowed.
        no_sync: makes a context in which a backward pass does not reduce gradients over ranks.
        store: where weights and gradients are. Default None: in the parameters of the optimizer's groups.
        autocast_dtype: the type that the closures compute in by autocast, None without.
        began_on_grid: the training, now resumed, began with weights that are bfloat16 numbers (``store.on_grid``).

    Attributes:
        steps_made: optimizer steps made by this engine; a resumed run sets it, for its random numbers to go on.

    Raises:
        ValueError: the combination cannot be exact; the message says what to do instead.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scope: str = "global",
        loss_scale: Callable[[], Tensor] | None = None,
        no_sync: Callable[[], AbstractContextManager] | None = None,
        store: Store | None = None,
        autocast_dtype: torch.dtype | None = None,
        began_on_grid: bool = False,
    ) -> None:
        self.model = model
        if store is None and zero.is_engine(model):
            raise ValueError(
                "a loop of your own does not run under DeepSpeed, which steps within accelerator.backward: use "
                "hf_sharpness.Trainer, or FSDP2"
            )
        self.store = store or Store(model, base_optimizer(optimizer))
        self.optimizer = self.store.optimizer
        self.method = method.resolved(adaptive_base=scales_per_coordinate(self.optimizer))
        check_supported(self.method, model, self.optimizer, scope, self.store.named())
        if autocast_dtype == torch.bfloat16:
            self.store.find_weights_on_grid(began_on_grid)
        self.scope = scope
        self.loss_scale = loss_scale
        self.no_sync = no_sync or (lambda: gradients_unreduced(model))
        self.data_parallel = data_parallel_module(model)
        self.rank_groups = self.store.rank_groups()
        self.gradients_are_views = getattr(self.data_parallel, "gradient_as_bucket_view", False)
        self.metrics: dict[str, Tensor | float] = {}
        self.steps_made = 0
        self.after_step: AfterStep | None = None
        self.hooks: list[RemovableHandle] = []
        if self.method.adds_after_step:
            self.hooks.append(self.optimizer.register_step_pre_hook(self._before_optimizer_step))
            self.hooks.append(self.optimizer.register_step_post_hook(self._after_optimizer_step))
        self._forget_step()

    def _forget_step(self) -> None:
        self.micro_batches: list[tuple[Closure, RandomState]] = []
        self.losses: list[Tensor] = []
        self.buffers: BufferState | None = None
        self.passes: Passes | None = None
        self.terms: dict[nn.Parameter, Tensor] = {}
        self.term_weight = 0.0
        self.before: dict[nn.Parameter, Tensor] = {}
        self.measured: list[dict[str, Tensor | float]] = []

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters in the base optimizer's groups, in their order."""
        return self.store.parameters()

    @property
    def checks_overflow(self) -> bool:
        """Whether every ascent looks first if its gradient is finite.

        On an accelerator that is a host synchronisation, made only where a GradScaler will skip the step.
        """
        return self.loss_scale is not None or next(self.model.parameters()).device.type == "cpu"

    @property
    def averages_itself(self) -> bool:
        """Whether gradients are averaged over ranks after the last pass instead of by its backward."""
        if self.data_parallel is None:
            return False
        return self.scope == "micro_batch" or (self.scope == "device" and self.method.adds_after_step)

    @property
    def reduces_last_replay(self) -> bool:
        """Whether the ascent is rank-local and the last replay's backward reduces the gradient over ranks."""
        return self.data_parallel is not None and self.scope == "device" and not self.averages_itself

    def pass_context(self, reduce: bool) -> AbstractContextManager:
        """The context for one micro-batch's forward and backward: gradients are reduced over ranks, or not."""
        return contextlib.nullcontext() if reduce else self.no_sync()

    def begin(self) -> None:
        """Start an optimizer step. What an interrupted one left behind is put back and dropped."""
        self.abort()

    def record(self, closure: Closure, last: bool) -> Tensor:
        """Run a micro-batch's first pass and remember it for the replays.

        Args:
            closure: forward and backward of the micro-batch; returns its share of the batch's mean loss.
            last: whether it is the step's last micro-batch.

        Returns:
            The closure's loss, detached.
        """
        if self.method.is_plain:
            with self.pass_context(reduce=last):
                return closure().detach()
        with self._aborting_on_error():
            alone = self.scope == "micro_batch"
            earlier = self._set_gradients_aside() if alone else []
            if alone or self.buffers is None:
                self.buffers = BufferState(self.model)
            random_state = RandomState(accelerators_of(self.model.parameters()))
            with self.pass_context(reduce=last and self.scope == "global"):
                loss = closure()
            if not isinstance(loss, Tensor):
                raise TypeError(f"the closure returned {type(loss).__name__}: it must return the loss, a tensor")
            loss = loss.detach()
            self.micro_batches.append((closure, random_state))
            self.losses.append(loss)
            if alone:
                self._run_method(loss)
                self._add_gradients(earlier)
                self.micro_batches = []
            return loss

    def finish(self) -> None:
        """Run the method: afterwards p.grad holds the gradient for the base optimizer, the weights are as before."""
        with self._aborting_on_error():
            if not self.method.is_plain:
                self._finish_passes()
            self.store.finish()

    def _finish_passes(self) -> None:
        if self.scope != "micro_batch":
            self._run_method(torch.stack(self.losses).sum())
        if self.averages_itself:
            self._average_over_ranks()
        if self.method.adds_after_step:
            self._prepare_after_step()
        self.metrics = self._merged_metrics()
        self.steps_made += 1
        self._forget_step()

    def noise(self, use: int) -> Noise:
        """Random bits for one use within this run of the method; another run, step or shard gets others."""
        return Noise(torch.initial_seed(), self.store.shard_index(), self.steps_made, len(self.measured), use)

    def abort(self) -> None:
        """Put the weights back if they are moved, and drop everything that belongs to an unfinished step."""
        passes = self.passes
        if passes is not None:
            passes.restore()
        self.store.abandon()
        self.after_step = None
        self._forget_step()

    def drop_pending(self) -> None:
        """Forget a term that waits for an optimizer step which did not happen (a GradScaler skipped it)."""
        self.after_step = None

    def close(self) -> None:
        """``abort``, and take the hooks off the optimizer."""
        self.abort()
        for handle in self.hooks:
            handle.remove()
        self.hooks = []

    @contextlib.contextmanager
    def clean_weights(self) -> Iterator[None]:
        """Inside, the weights are the unperturbed ones, even for a signal handler in the middle of a pass."""
        passes = self.passes
        if passes is None or not passes.saved:
            yield
            return
        # `.data` hides the change from autograd, whose graph of an interrupted pass needs the weights only as they
        # were when it goes on, and they are.
        self.store.check_can_save()
        live = [tensor.data for tensor in passes.live + passes.copies]
        moved = vectors.clone(live)
        vectors.copy_(live, passes.saved + passes.saved_copies)
        try:
            yield
        finally:
            vectors.copy_(live, moved)

    @contextlib.contextmanager
    def _aborting_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _run_method(self, loss: Tensor) -> None:
        self.passes = passes = Passes(self, self.micro_batches, self.buffers, loss)
        passes.run()
        if passes.term is not None:
            vector, self.term_weight = passes.term
            for parameter, term in zip(passes.params, passes.pad(vector), strict=True):
                earlier = self.terms.get(parameter)
                self.terms[parameter] = term if earlier is None else earlier.add_(term)
            self.before = dict(zip(passes.params, passes.saved, strict=True))
        self.measured.append(passes.metrics)
        self.passes = None

    def _set_gradients_aside(self) -> list[tuple[nn.Parameter, Tensor]]:
        earlier = [(p, p.grad) for p in self.model.parameters() if p.grad is not None]
        for parameter, _ in earlier:
            parameter.grad = None
        return earlier

    def _add_gradients(self, earlier: list[tuple[nn.Parameter, Tensor]]) -> None:
        """p.grad <- p.grad + what was set aside."""
        both = [(p, g) for p, g in earlier if p.grad is not None]
        vectors.add_([p.grad for p, _ in both], [g for _, g in both])
        for parameter, gradient in earlier:
            if parameter.grad is None:
                parameter.grad = gradient

    def _average_over_ranks(self) -> None:
        """Average the gradient, and the term for after the step, over the ranks of a DDP model."""
        group = self.data_parallel.process_group
        params = self.parameters()
        used = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=params[0].device)
        torch.distributed.all_reduce(used, op=torch.distributed.ReduceOp.MAX, group=group)
        params = [p for p, by_any in zip(params, used.tolist(), strict=True) if by_any]
        for parameter in params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        vectors.average_over_ranks_([p.grad for p in params], group)
        if self.method.adds_after_step:
            self.terms = {p: self.terms.get(p, torch.zeros_like(p)) for p in params}
            vectors.average_over_ranks_(list(self.terms.values()), group)

    def _prepare_after_step(self) -> None:
        """Have the method's term added once the base optimizer has stepped."""
        if not self.terms:
            return
        if self.scope != "global":
            # The weights as one rank's last replay saved them may lack parameters that other ranks used.
            self.before = dict(zip(self.terms, vectors.clone(vectors.local(list(self.terms))), strict=True))
        self.after_step = AfterStep(self.terms, self.term_weight, self.before, self.store)
        self.before = {}

    def _merged_metrics(self) -> dict[str, Tensor | float]:
        """What was measured in this step: losses summed over micro-batches that ran alone, the rest averaged."""
        merged: dict[str, Tensor | float] = {}
        for name in {name for metrics in self.measured for name in metrics}:
            values = [metrics[name] for metrics in self.measured if name in metrics]
            total = sum(values[1:], start=values[0])
            merged[name] = total if name in ("loss", "perturbed_loss") else total / len(values)
        if "perturbed_loss" in merged:
            merged["sharpness"] = merged["perturbed_loss"] - merged["loss"]
        return merged

    def _before_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.after_step is not None:
            self.after_step.measure_clipping(optimizer)

    def _after_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        after_step = self.after_step
        if after_step is not None:
            ratio = after_step.descend(optimizer)
            if ratio is not None:
                self.metrics["wsam_step_ratio"] = ratio
            if after_step.is_done:
                self.after_step = None
