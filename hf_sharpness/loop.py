"""SAM, WSAM and XSAM for training loops of your own (plain PyTorch, Accelerate): a sharpness-aware ``backward``.

method = WSAM(model, optimizer, rho=0.05)

for batch in data:
    def closure():
        loss = loss_of(model, batch)
        loss.backward()                      # or accelerator.backward(loss), scaler.scale(loss).backward()
        return loss

    loss = method.backward(closure)          # instead of loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(); scheduler.step(); optimizer.zero_grad()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import methods
from .engine import Closure, Engine
from .engine.usage import Usage

SEARCH_EVERY = 100
"""Optimizer steps between two searches of XSAM for its alpha, in a loop that does not say when its epochs begin."""


class SharpnessAware:
    """A method tied to a model and its base optimizer, which is left as it is: step it, schedule it, save it as ever.

    Args:
        method: the method with its hyper-parameters.
        model: the model that the closure calls.
        optimizer: the base optimizer.
        scope: whose gradient makes the perturbation: "global", "device" or "micro_batch". Default "global".
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one. Default None.
        autocast_dtype: the type of the closure's autocast, if it has one; matters for weights out of a bf16 checkpoint.
            Default None.
        total_steps: how many optimizer steps the training makes, for a method that goes by its progress. Default None.

    Attributes:
        engine: the engine that runs the passes.
    """

    def __init__(
        self,
        method: methods.Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scope: str = "global",
        scaler: Any = None,
        autocast_dtype: torch.dtype | None = None,
        total_steps: int | None = None,
    ) -> None:
        device = next(model.parameters()).device
        scale: Callable[[], Tensor] | None = None
        if scaler is not None and scaler.is_enabled():
            scale = lambda: scaler.scale(torch.ones((), device=device))  # noqa: E731
        self.engine = Engine(
            method,
            model,
            optimizer,
            scope=scope,
            loss_scale=scale,
            autocast_dtype=autocast_dtype,
            total_steps=total_steps,
        )
        self._usage = Usage(self.engine, scale)

    @property
    def method(self) -> methods.Method:
        """The method with its hyper-parameters, defaults filled in."""
        return self.engine.method

    @property
    def metrics(self) -> dict[str, Tensor | float]:
        """What the last step measured, as 0-dim tensors on the device.

        loss, perturbed_loss, sharpness, ascent_grad_norm, perturbation_norm; for XSAM xsam_alpha and xsam_psi; for
        decoupled WSAM wsam_step_ratio, once the optimizer has stepped.
        """
        return self.engine.metrics

    def backward(self, closure: Closure | Sequence[Closure]) -> Tensor:
        """Leave in p.grad the gradient that the base optimizer is to step with.

        Args:
            closure: does forward and backward over the effective batch and returns the loss (a tensor). It is called
                once more for every further pass, must not zero gradients, and may loop over micro-batches. Or a list of
                such functions, one for each micro-batch: their gradients add up, so each scales its loss so that the
                sum is the batch's mean loss. A list is needed for ``scope="micro_batch"``, and gradients are then
                reduced over ranks in the last one only.

        Returns:
            The clean loss L(w), detached (the sum over the closures).

        A gradient that is in p.grad before is added to the method's at the end, be it of a ``loss.backward()`` or of an
        earlier call before the same ``optimizer.step()``.

        Raises:
            TypeError: a closure is no function, or returned no tensor.
            RuntimeError: no closure ran ``loss.backward()``, or one dropped the gradients that it was to add to (it
                called ``zero_grad``).
        """
        closures = self._usage.begins(closure)
        self.engine.begin()
        losses = []
        for index, function in enumerate(closures, start=1):
            losses.append(self.engine.record(function, last=index == len(closures)))
            self._usage.recorded()
        try:
            self._usage.ends()
        except BaseException:
            self.engine.abort()
            raise
        self.engine.finish()
        return torch.stack(losses).sum()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides model, optimizer and scheduler, for ``torch.save``.

        XSAM's alpha, the number of the step, and the tensors that a method keeps: where weights are sharded, this
        rank's, so that each rank saves its own.
        """
        return {**self.method.state_dict(), "course": self.engine.course.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state (``torch.load`` with ``weights_only=True`` reads it).

        Tensors that the method kept on another number of ranks, or of other shapes, start anew, with a warning.
        """
        state = dict(state)
        reason = self.engine.course.load_state_dict(state.pop("course", {}))
        self.method.load_state_dict(state)
        if reason is not None:
            names = ", ".join(self.method.keeps)
            warnings.warn(
                f"what the method keeps ({names}) starts anew, as the state was not taken over: {reason}", stacklevel=2
            )


class SAM(SharpnessAware):
    """SAM (arXiv 2010.01412); with ``adaptive`` ASAM (arXiv 2102.11600).

    Args:
        model: the model that the closure calls.
        optimizer: the base optimizer.
        rho: total length of the ascent step.
        adaptive: scale it by the size of each weight.
        steps: number of ascent steps, each of length rho/steps.
        scope: whose gradient makes the perturbation: "global", "device" or "micro_batch".
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one.
        autocast_dtype: the type of the closure's autocast, if it has one; matters for weights out of a bf16 checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = methods.SAM.rho,
        adaptive: bool = methods.SAM.adaptive,
        steps: int = methods.SAM.steps,
        scope: str = "global",
        scaler: Any = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(methods.SAM(rho, adaptive, steps), model, optimizer, scope, scaler, autocast_dtype)


class WSAM(SharpnessAware):
    """WSAM (arXiv 2305.15817).

    Args:
        model: the model that the closure calls.
        optimizer: the base optimizer.
        rho: total length of the ascent step.
        gamma: weight of sharpness, 0 <= gamma < 1; None is .9 decoupled, .6 coupled.
        mode: "decoupled", "coupled", or "auto" (decoupled for SGD, coupled for an adaptive base).
        adaptive: scale the ascent by the size of each weight (ASAM).
        steps: number of ascent steps, each of length rho/steps.
        scope: whose gradient makes the perturbation: "global", "device" or "micro_batch".
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one.
        autocast_dtype: the type of the closure's autocast, if it has one; matters for weights out of a bf16 checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = methods.WSAM.rho,
        gamma: float | None = methods.WSAM.gamma,
        mode: str = methods.WSAM.mode,
        adaptive: bool = methods.WSAM.adaptive,
        steps: int = methods.WSAM.steps,
        scope: str = "global",
        scaler: Any = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            methods.WSAM(rho, adaptive, steps, mode, gamma), model, optimizer, scope, scaler, autocast_dtype
        )


class XSAM(SharpnessAware):
    """XSAM (arXiv 2603.10048).

    Args:
        model: the model that the closure calls.
        optimizer: the base optimizer.
        rho: total length of the ascent step.
        rho_max: probe radius; None is 2 rho.
        alpha: a number fixes alpha; None searches for it.
        alpha_max: upper end of the searched grid (the lower is 0).
        alpha_points: points of the grid.
        refresh: when alpha is searched anew: an integer, in optimizer steps, or "epoch" (call ``start_epoch()`` when
            one begins). Default None: every 100 steps, but once ``start_epoch()`` has been called when epochs begin.
        adaptive: scale the ascent by the size of each weight (ASAM).
        steps: number of ascent steps, each of length rho/steps.
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one.
        autocast_dtype: the type of the closure's autocast, if it has one; matters for weights out of a bf16 checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = methods.XSAM.rho,
        rho_max: float | None = methods.XSAM.rho_max,
        alpha: float | None = methods.XSAM.alpha,
        alpha_max: float = methods.XSAM.alpha_max,
        alpha_points: int = methods.XSAM.alpha_points,
        refresh: int | str | None = None,
        adaptive: bool = methods.XSAM.adaptive,
        steps: int = methods.XSAM.steps,
        scope: str = "global",
        scaler: Any = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self._refresh_is_open = refresh is None
        refresh = SEARCH_EVERY if refresh is None else refresh
        method = methods.XSAM(rho, adaptive, steps, rho_max, alpha, alpha_max, alpha_points, refresh)
        super().__init__(method, model, optimizer, scope, scaler, autocast_dtype)

    @property
    def alpha(self) -> float | None:
        """The alpha in use: the fixed one, else what the last search found (None before the first)."""
        return self.method.found_alpha if self.method.alpha is None else self.method.alpha

    def start_epoch(self) -> None:
        """An epoch begins: search for alpha at the next ``backward`` (unless ``refresh`` is an integer)."""
        if self._refresh_is_open:
            self.method.refresh = "epoch"
        self.method.start_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "refresh": self.method.refresh}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        refresh = state.pop("refresh", None)
        if self._refresh_is_open and refresh is not None:
            self.method.refresh = refresh
        super().load_state_dict(state)
