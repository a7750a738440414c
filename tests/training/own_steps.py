"""Trainers with a training_step of their own; ``own_steps_by_hand`` has what each does to the gradient."""

from __future__ import annotations

from typing import Any

import torch
from models import Batch, classification, collate
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

MEMORY = collate(classification(8, seed=7))
EXTRA = 1.0
ROWS = 4  # of the first layer, whose weights are not to move


def backward(trainer: Any, model: nn.Module, batch: Batch = MEMORY) -> Tensor:
    loss = model(**batch)["loss"]
    trainer.accelerator.backward(loss)
    return loss.detach()


class Before:
    """Experience replay: the memory's loss first."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        model.train()
        backward(self, model)
        return super().training_step(model, inputs, *args, **kwargs)


class After:
    """The memory's loss last, which is not in the loss that is returned."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        backward(self, args[0])
        return loss


class Twice:
    """The stock step on the memory too, called by keyword."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        return loss + super().training_step(model=model, inputs=dict(MEMORY), num_items_in_batch=num_items_in_batch)


class Inside:
    """No training_step of its own: a backward inside compute_loss."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        backward(self, model)
        return super().compute_loss(model, *args, **kwargs)


class Extra:
    """Adds a constant to every gradient, once in an optimizer step."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients:
            for parameter in model.parameters():
                parameter.grad += EXTRA
        return loss


class ExtraEachTime:
    """The same for every micro-batch, in a new tensor."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        for parameter in model.parameters():
            parameter.grad = parameter.grad + EXTRA
        return loss


class Masked:
    """Some rows keep their weights."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        model.first.weight.grad[:ROWS] = 0
        return loss


class MaskedData(Masked):
    """Written through `.data`, which autograd's version counters do not see."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super(Masked, self).training_step(model, *args, **kwargs)
        model.first.weight.grad.data[:ROWS] = 0
        return loss


class Decayed:
    """What earlier micro-batches have left counts half, written through `.data` before the inner call."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.data.mul_(0.5)
        return super().training_step(model, *args, **kwargs)


class Clipped:
    """Clips what has been accumulated."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        return loss


class Own:
    """A whole step of its own, which returns a number that has nothing to do with the loss."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        model.train()
        inputs = self._prepare_inputs(inputs)
        inputs["x"] = inputs["x"].mul_(2)
        labels = inputs.pop("labels")
        loss = self.compute_loss(model, {"x": inputs.pop("x"), "labels": labels})
        self.accelerator.backward(loss, retain_graph=True)
        return torch.tensor(7.0)


class Attacked:
    """FGM: a second backward where the first layer's weights are moved along its gradient, put back."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        weight = model.first.weight
        backup = weight.data.clone()
        weight.data.add_(0.5 * weight.grad / weight.grad.norm())
        attacked = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(attacked)
        weight.data.copy_(backup)
        return loss + attacked.detach()


class AttackedAnew(Attacked):
    """The same on memory of its own, as `param.data = backup[name]` leaves it."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super(Attacked, self).training_step(model, inputs, *args, **kwargs)
        backup = {"first": model.first.weight.data.clone()}
        model.first.weight.data = backup["first"] + 0.5 * model.first.weight.grad / model.first.weight.grad.norm()
        attacked = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(attacked)
        model.first.weight.data = backup["first"]
        return loss + attacked.detach()


class Surgery:
    """Gradient surgery: the two tasks' gradients, each without what opposes the other."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        parameters = list(model.parameters())
        losses = [model(**self._prepare_inputs(dict(inputs)))["loss"], model(**MEMORY)["loss"]]
        a, b = (parameters_to_vector(torch.autograd.grad(loss, parameters)) for loss in losses)
        total = a + b - torch.clamp(a @ b, max=0) * (b / (b @ b) + a / (a @ a))
        offset = 0
        for p in parameters:
            part = total[offset : offset + p.numel()].view_as(p)
            p.grad = part.clone() if p.grad is None else p.grad + part
            offset += p.numel()
        return sum(losses).detach()


class Ascending:
    """Unlearning: what has been accumulated is turned round in the last micro-batch."""

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients:
            for parameter in model.parameters():
                parameter.grad.data.neg_()
        return loss


class Deep(Masked, After):
    """Two overrides, one above the other."""
