"""Trainers with a training_step of their own, each with what it does to the gradient, written down a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models import Batch, Net, classification, collate
from reference import flat
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

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


# The same as functions: from the gradient so far to the gradient after the micro-batch, and the losses it descends.

Reference = Callable[[nn.Module, Batch, Tensor, int, bool], tuple[Tensor, Any]]


def grad(loss: Tensor, net: nn.Module) -> Tensor:
    return parameters_to_vector(torch.autograd.grad(loss, list(net.parameters())))


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    return net(**batch)["loss"]


def with_memory(weight: Callable[[int], float]) -> Reference:
    def step(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
        loss = loss_of(net, batch) / n + loss_of(net, MEMORY) * weight(n)
        return g + grad(loss, net), loss

    return step


def edited(edit: Callable[[Tensor, bool], Tensor]) -> Reference:
    def step(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
        loss = loss_of(net, batch) / n
        return edit(g + grad(loss, net), last), loss

    return step


def masked(g: Tensor, last: bool = True) -> Tensor:
    return torch.cat([torch.zeros(ROWS * 6, dtype=g.dtype), g[ROWS * 6 :]])  # the weight of the first layer is 8 x 6


def decayed(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    loss = loss_of(net, batch) / n
    return 0.5 * g + grad(loss, net), loss


def own(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    loss = loss_of(net, {"x": 2 * batch["x"], "labels": batch["labels"]})
    return g + grad(loss, net), loss


def attacked(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    clean = loss_of(net, batch) / n
    g = g + grad(clean, net)
    w = flat(net)
    direction = torch.zeros_like(w)
    direction[: 8 * 6] = g[: 8 * 6] / g[: 8 * 6].norm()
    vector_to_parameters(w + 0.5 * direction, net.parameters())
    loss = loss_of(net, batch)
    g = g + grad(loss, net)
    vector_to_parameters(w, net.parameters())
    return g, clean.detach() + loss.detach()


def surgery(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    losses = [loss_of(net, batch), loss_of(net, MEMORY)]
    a, b = (grad(loss, net) for loss in losses)
    if a @ b < 0:
        a, b = a - (a @ b) / (b @ b) * b, b - (a @ b) / (a @ a) * a
    return g + a + b, sum(losses)


def deep(net: nn.Module, batch: Batch, g: Tensor, n: int, last: bool) -> tuple[Tensor, Any]:
    g, loss = with_memory(lambda n: 1)(net, batch, g, n, last)
    return masked(g), loss


def clipped(g: Tensor, last: bool) -> Tensor:
    return g * torch.clamp(0.3 / (g.norm() + 1e-6), max=1.0)


CASES: dict[type, Reference] = {
    Before: with_memory(lambda n: 1),
    After: with_memory(lambda n: 1),
    Twice: with_memory(lambda n: 1 / n),
    Inside: with_memory(lambda n: 1),
    Extra: edited(lambda g, last: g + EXTRA * last),
    ExtraEachTime: edited(lambda g, last: g + EXTRA),
    Masked: edited(masked),
    MaskedData: edited(masked),
    Decayed: decayed,
    Clipped: edited(clipped),
    Own: own,
    Attacked: attacked,
    AttackedAnew: attacked,
    Surgery: surgery,
    Ascending: edited(lambda g, last: -g if last else g),
    Deep: deep,
}


NOT_ADDITIVE = {Decayed, Clipped, Attacked, AttackedAnew, Ascending}
"""What these do to a micro-batch's gradient depends on those before it: scope `micro_batch` shows them none."""


@dataclass
class OwnProblem:
    """The effective batch's gradient as such a step makes it, for the reference methods."""

    net: Net
    step: Reference
    micro_batches: Sequence[Batch]
    numbers: Sequence[int]

    @property
    def parts(self) -> list[OwnProblem]:
        return [OwnProblem(self.net, self.step, self.micro_batches, [number]) for number in self.numbers]

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(w, self.net.parameters())
        n, g, total = len(self.micro_batches), torch.zeros_like(w), 0.0
        for number in self.numbers:
            g, loss = self.step(self.net, self.micro_batches[number], g, n, number == n - 1)
            total += float(loss.detach())
        return total, g

    def loss(self, w: Tensor) -> float:
        return self.gradient(w)[0]


def by_hand(step: Reference, method: Any, steps: Sequence[Sequence[Batch]], lr: float) -> list[Tensor]:
    """SGD with the method: the weights after every step."""
    net = Net().double().train()
    w, weights = flat(net), []
    for number, micro_batches in enumerate(steps):
        handed = method(OwnProblem(net, step, micro_batches, range(len(micro_batches))), w, number == 0)
        w = w - lr * handed.gradient - (0 if handed.extra is None else lr * handed.extra)
        weights.append(w)
    return weights
