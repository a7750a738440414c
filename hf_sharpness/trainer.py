"""transformers' Trainer with sharpness-aware steps.

Where they enter: ``training_step`` makes each micro-batch's first pass, and after the last one of an optimizer step has
the engine run the further passes, each again through the ``training_step`` of the class below. Loss scaling, label
smoothing, autocast and subclasses thus keep their say in every pass. Subclasses that override ``training_step``
themselves keep it too: see ``training/steps.py``.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .arguments import SharpnessArguments
from .engine import Engine
from .engine.decay import to_look_ahead_in
from .engine.deepspeed.step import DeferredStep
from .engine.deepspeed.supported import USED_BEFORE, ZeroWeights, weights_of
from .engine.parallel import gradients_unreduced
from .methods import METHODS
from .sharing import config
from .sharpness_arguments.other_trainers import method_check
from .training import card, kept
from .training.averages import Averages
from .training.base_choice import BaseChoice
from .training.callback import SharpnessCallback, at_epoch_boundary
from .training.launch import warn_of_lone_processes
from .training.mixin_base import MixinBase
from .training.outermost import unwrapped, wrap_outermost
from .training.parts import InnerStep
from .training.replay import state_of
from .training.steps import Steps
from .training.unused import warn_of_unused

_STOCK_TRAINER = transformers.Trainer  # `hf-sharpness run` puts ours in its place

LOGGED = ("perturbed_loss", "sharpness", "ascent_grad_norm", "perturbation_norm")
"""Logged for every method, beside what the method measures of its own."""


class _SharpnessTrainer(MixinBase):
    """What ``SharpnessTrainerMixin`` and this package's Trainers have in common, which is all of it.

    A base of its own for the reason that ``_SharpnessArguments`` is one.
    """

    # Here instead of in an __init__, whose signature libraries look at.
    _sharpness_engine: Engine | None = None
    _sharpness_steps: Steps | None = None
    _sharpness_averages: Averages
    _sharpness_epoch_has_begun = False
    _sharpness_resumed_from: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _STOCK_TRAINER in cls.__mro__[: cls.__mro__.index(_SharpnessTrainer)]:
            raise TypeError(
                f"class {cls.__name__} names SharpnessTrainerMixin after a Trainer, whose methods then hide the "
                "mixin's: it would train without sharpness-aware steps. Name the mixin first: "
                f"class {cls.__name__}(SharpnessTrainerMixin, ...)"
            )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without what belongs to a training under way."""
        state = dict(vars(self))
        state.pop("_sharpness_engine", None)
        state.pop("_sharpness_steps", None)
        unwrapped(state)
        return state

    @property
    def uses_sharpness(self) -> bool:
        """Whether the arguments choose a sharpness-aware method."""
        return getattr(self.args, "uses_sharpness", False)

    get_optimizer_cls_and_kwargs: Any = BaseChoice(_STOCK_TRAINER)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own. However it ends, the weights are not left perturbed."""
        warn_of_lone_processes(self.args)
        self.remove_callback(SharpnessCallback)
        self.remove_callback(method_check())
        warn_of_unused(self.args)
        self._sharpness_resumed_from = None
        if self.uses_sharpness or kwargs.get("trial") is not None:  # a search may set `optim` yet
            callback = SharpnessCallback()
            callback.attach(self)  # type: ignore[arg-type]
            self.add_callback(callback)
        wrap_outermost(self, self._sharpness_outermost_step)
        try:
            return super().train(*args, **kwargs)
        finally:
            unwrapped(vars(self))
            self._close_sharpness()

    def _close_sharpness(self) -> None:
        engine, self._sharpness_engine, self._sharpness_steps = self._sharpness_engine, None, None
        if engine is not None:
            engine.close()
        accelerator = getattr(self, "accelerator", None)
        deferred = getattr(accelerator, "deepspeed_engine_wrapped", None)
        if accelerator is not None and isinstance(deferred, DeferredStep):
            deferred.close()
            accelerator.deepspeed_engine_wrapped = deferred.wrapper

    def _start_sharpness(self) -> None:
        """Build the engine, once model and optimizer are what they will be in training."""
        self._close_sharpness()
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and (parallelism.cp_enabled or getattr(parallelism, "sp_enabled", False)):
            raise ValueError(
                f"optim={self.args.optim!r} does not run with context or sequence parallelism, which consumes the "
                "micro-batches that a second pass needs: use data parallelism or FSDP2"
            )
        self.args.check_sharpness()  # again: a hyper-parameter search sets arguments one by one
        method = self.args.method()
        saved = self.state.stateful_callbacks.get(SharpnessCallback.__name__)
        earlier = saved["attributes"] if saved else {}
        method.load_state_dict(earlier.get("method_state", {}))
        scaler = self.accelerator.scaler
        loss_scale = scaler and (lambda: scaler.scale(torch.ones((), device=self.args.device)))
        weights, loss_scale = self._sharpness_deepspeed_weights() if self.is_deepspeed_enabled else (None, loss_scale)
        self._sharpness_engine = Engine(
            method,
            self.model_wrapped,
            self.optimizer,
            options=self.args.step_options(),
            loss_scale=loss_scale,
            no_sync=self._sharpness_unreduced,
            weights=weights,
            is_half=self.accelerator.mixed_precision == "bf16",
            total_steps=self.state.max_steps or None,  # num_train_epochs=0: nothing is to be trained
            scheduler=to_look_ahead_in(self.lr_scheduler, earlier.get("decay_begins")),
            roots=state_of(self),
        )
        self._sharpness_engine.course.progress.steps_made = self.state.global_step
        if self._sharpness_resumed_from is not None:
            kept.load(self._sharpness_engine.course.kept, self._sharpness_resumed_from, self.args.process_index)
        self._sharpness_steps = Steps(self, self._sharpness_engine, _SharpnessTrainer.training_step, _STOCK_TRAINER)
        self._sharpness_averages = Averages((*LOGGED, *self._sharpness_engine.method.metrics))
        # A resume may begin in the middle of an epoch, which is then no new one.
        if at_epoch_boundary(self.state):
            self._sharpness_engine.start_epoch()
        self._sharpness_epoch_has_begun = False

    def _sharpness_deepspeed_weights(self) -> tuple[ZeroWeights, Any]:
        """Where DeepSpeed's weights are, and its loss scale; from now on it steps when the passes are over."""
        accelerator = self.accelerator
        if accelerator.deepspeed_engine_wrapped is None:  # Accelerate has destroyed it, and made no other
            raise ValueError(USED_BEFORE)
        weights = weights_of(self.model_wrapped)
        # Accelerate's wrapper of the engine, which `accelerator.backward` calls.
        weights.deferred = accelerator.deepspeed_engine_wrapped = DeferredStep(
            accelerator.deepspeed_engine_wrapped, lambda: accelerator.sync_gradients, weights.before_backward
        )
        weights.deferred.guard(self.model)
        return weights, weights.loss_scale()

    def _start_sharpness_late(self) -> None:
        """The same in the first step: callbacks that were restored from a checkpoint do not know their trainer."""
        self._start_sharpness()
        self._sharpness_epoch_has_begun = True
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SharpnessCallback):
                callback.attach(self)  # type: ignore[arg-type]

    def _sharpness_unreduced(self) -> AbstractContextManager[None]:
        return gradients_unreduced(self.model_wrapped)

    def _sharpness_outermost_step(self, step: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """While ``train`` runs, every call of this Trainer's ``training_step``, whoever has defined it, comes here."""
        if self._sharpness_engine is None and self.uses_sharpness and self.is_in_train:
            self._start_sharpness_late()
        if self._sharpness_steps is None:
            return step(*args, **kwargs)
        return self._sharpness_steps.outermost(step, args, kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward of a micro-batch; after the step's last one also the further passes of the method.

        Returns:
            The clean loss L(w) of the micro-batch.
        """
        plain_step = super().training_step
        if self._sharpness_steps is None:
            return plain_step(model, inputs, *args, **kwargs)
        return self._sharpness_steps.inner(InnerStep(plain_step, model, args, kwargs), inputs)

    def _sharpness_epoch_begins(self) -> None:
        if self._sharpness_epoch_has_begun and self._sharpness_engine is not None:
            self._sharpness_engine.start_epoch()
        self._sharpness_epoch_has_begun = True

    def _sharpness_optimizer_step(self) -> dict[str, Any]:
        """Called after ``optimizer.step()``, also when a GradScaler skipped it. Returns the method's state to save."""
        engine, steps = self._sharpness_engine, self._sharpness_steps
        if engine is None or steps is None or not steps.gradient_is_ready:
            raise RuntimeError(
                f"optim={self.args.optim!r} had no effect: the training loop of {type(self).__name__} does not call "
                "training_step, where sharpness-aware steps are made: have it call training_step, or use "
                f"{METHODS[self.args.optim].__name__} of this package in it"
            )
        steps.gradient_is_ready = False
        self._sharpness_averages.add(engine.metrics)
        engine.drop_pending(self.optimizer)
        return engine.method.state_dict()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """transformers' own, with the sharpness series beside the training loss."""
        if self._sharpness_steps is not None and self._sharpness_steps.replaying:
            return
        of_training = "loss" in logs or "learning_rate" in logs  # SetFit renames the loss
        if self._sharpness_engine is not None and of_training:
            logs.update(self._sharpness_averages.take(self._sharpness_sum_over_ranks, self.args.device))
        super().log(logs, *args, **kwargs)

    def _sharpness_sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """transformers' own, with ``sharpness_config.json`` beside the weights (with a stock ``optim``: without), and
        a model card where there is none (but for checkpoints).

        Saves the unperturbed weights even if a signal handler asks in the middle of a pass.
        """
        if self.args.should_save:
            folders = [output_dir or self.args.output_dir]
            if self.args.push_to_hub:  # a checkpoint is uploaded by way of this folder
                folders.append(self.args.output_dir)
            for folder in folders:
                if self.uses_sharpness:
                    config.save(self.args, folder)
                else:
                    config.remove_stale(SharpnessArguments, folder)
        with self._sharpness_engine.clean_weights() if self._sharpness_engine is not None else contextlib.nullcontext():
            super().save_model(output_dir, *args, **kwargs)
        card.leave(self, output_dir, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str, *args: Any, **kwargs: Any) -> None:
        """transformers' own, and the tensors that the method keeps. DeepSpeed's has the weights in it, unperturbed."""
        with self._sharpness_engine.clean_weights() if self._sharpness_engine is not None else contextlib.nullcontext():
            super()._save_optimizer_and_scheduler(output_dir, *args, **kwargs)
        if self._sharpness_engine is not None:
            kept.save(self._sharpness_engine.course.kept, output_dir, self.args.process_index)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> None:
        """transformers' own. What the method keeps is loaded once the engine is there."""
        super()._load_optimizer_and_scheduler(checkpoint, *args, **kwargs)
        self._sharpness_resumed_from = checkpoint

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """transformers' own, with method, hyper-parameters, measured sharpness, papers and tags."""
        if self.uses_sharpness and hasattr(self.model, "add_model_tags"):  # PEFT makes a card's tags anew from these
            self.model.add_model_tags(card.tags(self.args))
        readme = Path(self.args.output_dir, "README.md")
        if hasattr(self.model, "config") or not self.uses_sharpness:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            card.begin(readme, self.model)
        if self.uses_sharpness and self.is_world_process_zero():
            repo = getattr(self, "hub_model_id", None)
            steps = card.steps_of(self)
            card.complete(readme, self.args, self.optimizer, self.state.log_history, LOGGED, repo, steps)


class SharpnessTrainerMixin(_SharpnessTrainer):
    """Gives a Trainer the sharpness-aware optimizers; with any other ``optim`` it changes nothing.

    Put it before a Trainer class: ``class MyTrainer(SharpnessTrainerMixin, SFTTrainer)``. The training arguments must
    carry ``SharpnessArguments``.
    """


class Trainer(_SharpnessTrainer, transformers.Trainer):
    """transformers.Trainer with the sharpness-aware optimizers; otherwise it is transformers' own, bit for bit."""


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):
    """transformers.Seq2SeqTrainer with the sharpness-aware optimizers; otherwise transformers' own, bit for bit."""
