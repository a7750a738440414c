"""A method in a loop of the user's own: a sharpness-aware ``backward``."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import Closure, Engine
from ..engine.fraction import PartClosure
from ..engine.usage import Usage
from ..methods import Method, Options, hyperparameters
from ..methods.hyperparameters import Hyperparameter
from .given import NOT_SET, check_given, no_attribute, refuse_unknown

HOME = "hf_sharpness.loop"
"""The module that the classes of the methods say they are from."""


class SharpnessAware:
    """A method tied to a model and its base optimizer, which is left as it is: step it, schedule it, save it as ever.

    This package's methods have classes of their own, such as ``WSAM(model, optimizer, rho=0.05)``; with any other it is
    ``SharpnessAware(MyMethod(rho=0.05), model, optimizer)``, registered or not.

    Args:
        method: the method with its hyper-parameters.
        model: the model that the closure calls.
        optimizer: the base optimizer.
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one. Default None.
        total_steps: how many optimizer steps the training makes, each with one ``backward``, for a method or an option
            that goes by its progress. Default None.
        scheduler: the learning rate's scheduler, for ``start="decay"``. Default None.
        options: the options of every method's steps, with the defaults of ``hf_sharpness.methods.Options``, such as
            ``scope="device"``.

    The method's hyper-parameters are attributes. Those of type float can be set: ``method.rho = 0.1`` holds from the
    next step on; to set another one is an error.

    Attributes:
        engine: the engine that runs the passes.

    Raises:
        TypeError: what is given is no model, no optimizer or no method, or there is no such option.
        ValueError: an option, or a hyper-parameter, is out of its range, options exclude each other, or the model or
            the optimizer is of a kind that the steps cannot be exact for; the message says what to do instead.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: Any = None,
        total_steps: int | None = None,
        scheduler: Any = None,
        **options: Any,
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(
                f"method={method!r} is not valid: must be a method with its settings, as in "
                "hf_sharpness.methods.SAM(rho=0.1); hf_sharpness.SAM(model, optimizer, rho=0.1) is a loop's own already"
            )
        known = {field.name for field in dataclasses.fields(Options)}
        refuse_unknown(type(self).__name__, options, known)
        check_given(type(self).__name__, model, optimizer)
        device = next(model.parameters()).device
        scale: Callable[[], Tensor] | None = None
        if scaler is not None and scaler.is_enabled():
            scale = lambda: scaler.scale(torch.ones((), device=device))  # noqa: E731
        self.engine = Engine(
            method,
            model,
            optimizer,
            options=Options(**options),
            loss_scale=scale,
            total_steps=total_steps,
            scheduler=scheduler,
        )
        self._usage = Usage(self.engine, scale)
        self._without_epochs: set[str] = set()
        for name, setting in self._settings().items():
            if float in setting.kinds:
                vars(self).pop(name, None)  # a subclass may have set it before: now it is the method's

    def __getattr__(self, name: str) -> Any:
        if name in self._settings():
            return getattr(self.method, name)
        raise AttributeError(no_attribute(type(self).__name__, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setting = self._settings().get(name)
        if setting is not None and float in setting.kinds:
            value = value.item() if hasattr(value, "item") else value  # a tensor's number, or NumPy's
            setting.check(value)
            setattr(self.method, name, value)
        elif setting is not None and type(self).__module__ == HOME:  # a subclass may mean another thing by it
            raise AttributeError(NOT_SET.format(name=type(self).__name__, attribute=name, value=value))
        else:
            super().__setattr__(name, value)

    def _settings(self) -> dict[str, Hyperparameter]:
        """The method's hyper-parameters, but for those in whose place a subclass has something else."""
        engine = vars(self).get("engine")
        own = {} if engine is None else hyperparameters(type(engine.method))
        return {name: h for name, h in own.items() if not hasattr(type(self), name)}

    @property
    def method(self) -> Method:
        """The method with its hyper-parameters, defaults filled in."""
        return self.engine.method

    @property
    def metrics(self) -> dict[str, Tensor | float]:
        """What the last step measured, as 0-dim tensors on the device.

        loss, perturbed_loss, sharpness, ascent_grad_norm, and the ``metrics`` of the method. After
        ``backward(closure, measure=True)`` also perturbation_norm and, once the optimizer's step has been made,
        decoupled WSAM's wsam_step_ratio. Empty after a step of the base optimizer's own.
        """
        return self.engine.metrics

    def backward(
        self, closure: Closure | Sequence[Closure], measure: bool = False, part: Closure | None = None
    ) -> Tensor:
        """Leave in p.grad the gradient that the base optimizer is to step with.

        Args:
            closure: does forward and backward over the effective batch and returns the loss (a tensor). It is called
                once more for every further pass, must not zero gradients, and may loop over micro-batches. Or a list of
                such functions, one for each micro-batch: their gradients add up, so each scales its loss so that the
                sum is the batch's mean loss. A list is needed for ``scope="micro_batch"``, and gradients are then
                reduced over ranks in the last one only.
            measure: also measure how far the weights really move, for ``metrics``. It reads all weights a few times
                more, so ask for it in the steps that you log. Default False.
            part: with ``fraction`` and one closure, the same for the first max(1, round(fraction * b)) of its b
                examples, with the mean loss over them; called at the weights and at the moved ones. Default None: the
                part is the first closures of a list.

        Returns:
            The clean loss L(w), detached (the sum over the closures).

        A gradient that is in p.grad before is added to the method's at the end, be it of a ``loss.backward()`` or of an
        earlier call before the same ``optimizer.step()``.

        Raises:
            TypeError: a closure is no function, or returned no tensor.
            ValueError: the list is empty, ``fraction`` has no micro-batches to choose from, or gradients lie elsewhere
                than in p.grad.
            RuntimeError: no closure ran ``loss.backward()``, one dropped the gradients that it was to add to (it called
                ``zero_grad``), or called ``optimizer.step()``.
        """
        closures = self._usage.begins(closure, part)
        of_part = None if part is None else PartClosure(part, self.engine.fraction.fraction)
        self.engine.course.measures = measure
        self.engine.begin()
        losses = []
        with self._usage.passes():
            for index, function in enumerate(closures, start=1):
                losses.append(self.engine.record(function, index == len(closures), len(closures), of_part))
                self._usage.recorded()
            try:
                self._usage.ends()
            except BaseException:
                self.engine.abort()
                raise
            self.engine.finish()
        return torch.stack(losses).sum()

    def start_epoch(self) -> None:
        """Say that the next ``backward`` is the first of an epoch, for a method that goes by epochs (XSAM's search)."""
        for name in self._without_epochs:
            setattr(self.method, name, getattr(type(self.method), name))
        self.engine.start_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides model, optimizer and scheduler, for ``torch.save``.

        XSAM's alpha, the number of the step, and the tensors that a method keeps: where weights are sharded, this
        rank's, so that each rank saves its own.
        """
        settings = {name: getattr(self.method, name) for name in self.method.without_epochs}
        return {**self.method.state_dict(), **settings, "course": self.engine.course.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state (``torch.load`` with ``weights_only=True`` reads it).

        Tensors that the method kept on another number of ranks, or of other shapes, start anew, with a warning.
        """
        state = dict(state)
        settings = {name: state.pop(name, None) for name in self.method.without_epochs}
        for name in self._without_epochs:
            if settings[name] is not None:
                setattr(self.method, name, settings[name])
        reason = self.engine.course.load_state_dict(state.pop("course", {}))
        self.method.load_state_dict(state)
        if reason is not None:
            names = ", ".join(self.method.keeps)
            warnings.warn(
                f"what the method keeps ({names}) starts anew, as the state was not taken over: {reason}", stacklevel=2
            )


SharpnessAware.__module__ = HOME
