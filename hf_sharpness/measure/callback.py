"""Sharpness along a training: a callback for any Trainer and any optimizer, which leaves the training as it is.

trainer = Trainer(model, args, train_dataset=...)              # transformers' or this package's
trainer.add_callback(MeasureSharpness(trainer, every=100))
trainer.train()
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..training.replay import state_of
from .ball import sharpness, worst
from .batches import Batches, some_of
from .critical import critical_sharpness
from .errors import MeasureError
from .surface import Surface
from .updates import own_update


class MeasureSharpness(TrainerCallback):
    """Measures the loss around the weights every so many steps, on a fixed sample of the data, and logs `measure_...`.

    The training goes on bit for bit as without it: weights, gradients, optimizer, mode, buffers, random numbers and the
    Trainer's own state are put back. Everything is computed without dropout and without autocast, in the type of the
    weights (under FSDP2's mixed precision in that of its policy).

    Args:
        trainer: the Trainer that it is added to. Its `compute_loss`, collator and data sets are used.
        every: so many optimizer steps, or `epoch`, at the end of each. Default: epoch.
        examples: how many training examples, drawn once by `seed`. Default: 256.
        rho: lengths of SAM's perturbation. Default: .05.
        adaptive_rho: lengths of ASAM's. Default: none.
        worst_rho: radii within which the worst loss is looked for, with `worst_steps` ascents. Default: none.
        worst_steps: see there. Default: 5.
        critical: whether to look for critical sharpness, along the update that the optimizer itself would make of the
            examples' gradient, with its moments and weight decay. Default: yes. It needs room for a copy of the
            optimizer's state.
        gap: whether to evaluate as many examples of `eval_dataset` too, if it has a length. Default: yes.
        batch_size: examples in a batch. Default None: `per_device_eval_batch_size`.
        dataset: what to draw the examples from. Default None: the Trainer's `train_dataset`.
        seed: draws the examples. Default: 0.

    Raises:
        ValueError: an argument is not valid; or, when the training begins, it cannot be measured (DeepSpeed, FSDP1,
            weights stored in 16 bits, a stream as data set), with the remedy.
    """

    def __init__(
        self,
        trainer: Any,
        every: int | str = "epoch",
        *,
        examples: int = 256,
        rho: tuple[float, ...] = (0.05,),
        adaptive_rho: tuple[float, ...] = (),
        worst_rho: tuple[float, ...] = (),
        worst_steps: int = 5,
        critical: bool = True,
        gap: bool = True,
        batch_size: int | None = None,
        dataset: Any = None,
        seed: int = 0,
    ) -> None:
        is_count = isinstance(every, int) and not isinstance(every, bool) and every > 0
        if every != "epoch" and not is_count:
            raise ValueError(f"every={every!r} is not valid: must be a number of steps, at least 1, or 'epoch'")
        for name, value, least in (("examples", examples, 1), ("worst_steps", worst_steps, 0)):
            if value < least:
                raise ValueError(f"{name}={value!r} is not valid: must be at least {least}")
        for name, rhos in (("rho", rho), ("adaptive_rho", adaptive_rho), ("worst_rho", worst_rho)):
            if not isinstance(rhos, (list, tuple)) or not all(value > 0 for value in rhos):
                raise ValueError(f"{name}={rhos!r} is not valid: must be a tuple of positive numbers")
        self.trainer, self.every = trainer, every
        self.examples, self.batch_size, self.dataset, self.seed = examples, batch_size, dataset, seed
        self.rho, self.adaptive_rho = tuple(rho), tuple(adaptive_rho)
        self.worst_rho, self.worst_steps = tuple(worst_rho), worst_steps
        self.critical, self.gap = critical, gap
        self.last_step: float | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse what cannot be measured before the first step is made."""
        self.last_step = None
        self._batches()
        self._surface()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every != "epoch" and state.global_step % int(self.every) == 0:
            self._log(control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every == "epoch":
            self._log(control)

    def _log(self, control: TrainerControl) -> None:
        """By transformers' own `log`: a subclass's may flush what it has gathered for the training's next one."""
        found = {f"measure_{name}": value for name, value in self.measure().items()}
        due = control.should_log, self.trainer.control.should_log
        transformers.Trainer.log(self.trainer, found)
        control.should_log, self.trainer.control.should_log = due  # logging has ticked off the training's own

    def measure(self) -> dict[str, float]:
        """Measure now; the numbers by name, as they are logged but for `measure_`. All ranks call it together."""
        with self._full_precision(), self._surface() as surface:
            loss, gradient = surface.gradient()
            train = surface.evaluate()
            found: dict[str, float | None] = {
                "loss": loss,
                "error": train.error,
                "gradient_norm": surface.norm(gradient),
            }
            for kind, rhos, adaptive in (
                ("sharpness", self.rho, False),
                ("adaptive_sharpness", self.adaptive_rho, True),
            ):
                for entry in sharpness(surface, loss, gradient, rhos, adaptive):
                    found[f"{kind}_rho_{entry.rho:g}"] = entry.sharpness
            for rho in self.worst_rho:
                found[f"worst_sharpness_rho_{rho:g}"] = worst(surface, loss, gradient, rho, self.worst_steps).sharpness
            if self.critical:
                update = own_update(surface, self.trainer.optimizer, gradient)
                critical = critical_sharpness(surface, loss, gradient, update, guess=self.last_step)
                self.last_step = critical.step or self.last_step
                found |= {"critical_sharpness": critical.sharpness, "critical_learning_rate": critical.step}
            if self.gap and (batches := self._eval_batches()) is not None:
                evaluation = surface.evaluate(batches=batches)
                found["gap_loss"] = evaluation.loss - train.loss
                if evaluation.error is not None and train.error is not None:
                    found["gap_error"] = evaluation.error - train.error
        return {name: value for name, value in found.items() if value is not None}

    def _surface(self) -> Surface:
        trainer = self.trainer
        if trainer.is_deepspeed_enabled:
            raise MeasureError(
                "MeasureSharpness does not run with DeepSpeed, which hides weights and gradients: use DDP or FSDP2, or "
                "measure the saved model with `hf-sharpness measure`"
            )
        return Surface(trainer.model, self._batches(), self._loss_of, trainer.model_wrapped, state_of(trainer))

    def _loss_of(self, model: nn.Module, inputs: Any) -> tuple[torch.Tensor, Any]:
        given = dict(inputs) if hasattr(inputs, "items") else inputs
        loss, outputs = self.trainer.compute_loss(model, given, return_outputs=True)
        if hasattr(outputs, "get"):
            return loss, outputs.get("logits")
        return loss, outputs[1] if isinstance(outputs, (list, tuple)) and len(outputs) > 1 else None

    def _batches(self) -> Batches:
        dataset = self.trainer.train_dataset if self.dataset is None else self.dataset
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise MeasureError(
                "MeasureSharpness draws examples by their number, which this training data set does not allow "
                f"({type(dataset).__name__}): give it some with dataset="
            )
        return self._of(dataset)

    def _eval_batches(self) -> Batches | None:
        dataset: Any = getattr(self.trainer, "eval_dataset", None)
        if isinstance(dataset, dict) or not hasattr(dataset, "__len__") or not len(dataset):
            return None
        return self._of(dataset)

    def _of(self, dataset: Any) -> Batches:
        """As Trainer's own data loader has them: without unused columns, collated, and on the device."""
        trainer, args = self.trainer, self.trainer.args
        numbers = some_of(len(dataset), self.examples, self.seed)
        if type(dataset).__module__.startswith("datasets."):
            dataset, collate = trainer._remove_unused_columns(dataset, description="measured"), trainer.data_collator
        else:
            collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="measured")
        size = self.batch_size or args.per_device_eval_batch_size
        ranks = args.process_index, args.world_size
        return Batches(dataset, collate, size, numbers, trainer._prepare_inputs, *ranks)

    @contextlib.contextmanager
    def _full_precision(self) -> Iterator[None]:
        """Inside, the model computes without the autocast that Accelerate has put around its forward pass."""
        own = vars(self.trainer.model)
        patched = own.get("forward")
        if patched is None or "_original_forward" not in own:
            yield
            return
        own["forward"] = own["_original_forward"]
        try:
            yield
        finally:
            own["forward"] = patched
