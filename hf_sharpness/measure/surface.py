"""The loss over fixed examples as a function of the weights: what every measure looks at.

    with Surface(model, batches) as surface:
        loss, gradient = surface.gradient()
        perturbed = surface.loss((0.05 / surface.norm(gradient), gradient))     # L(w + rho g/||g||)

Displacements are given as pairs of a factor and a vector, a list of tensors with an entry for every weight. Whatever
happens inside, and whatever a forward pass does to buffers, counters and random generators, on leaving the ``with``
the model is what it was: weights, gradients, mode, state and random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import vectors
from ..engine.overlap import Memory
from ..engine.parallel import rank_groups
from ..engine.rounding import Noise
from ..engine.state import Moment, Root, State
from ..engine.weight_copies import forget_weight_copies
from ..engine.weights import Weights
from ..vectors import Vector
from .batches import Batches, errors_in, summed, terms_in
from .errors import MeasureError
from .supported import check_measurable

LossOf = Callable[[nn.Module, Any], tuple[Tensor, Any]]
"""Mean loss and logits (None: there are none) of a batch."""
Term = tuple[float, Vector]
"""A factor and a vector: a displacement of the weights."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and error over some examples.

    Args:
        loss: mean loss, in nats for a cross entropy.
        error: share of the examples with a wrong class; None where they are not classified.
        examples: how many there are.
    """

    loss: float
    error: float | None
    examples: int


def model_loss(model: nn.Module, inputs: Any) -> tuple[Tensor, Any]:
    """The loss that the model itself computes from a batch with labels, and its logits.

    Raises:
        MeasureError: the model returns no loss.
    """
    outputs = model(**inputs)
    if hasattr(outputs, "get"):
        loss, logits = outputs.get("loss"), outputs.get("logits")
    elif isinstance(outputs, (list, tuple)):
        loss, logits = outputs[0], outputs[1] if len(outputs) > 1 else None
    else:
        loss, logits = outputs, None
    if not isinstance(loss, Tensor) or loss.ndim:
        raise MeasureError(
            f"{type(model).__name__} returns no loss for a batch with {', '.join(inputs)}: give it labels, or a loss "
            "function"
        )
    return loss, logits


class Surface:
    """A model's loss over fixed batches, without dropout (``eval`` mode), as a function of the trainable weights.

    Args:
        model: the model, whose trainable parameters are moved: all of them, or an adapter's. Not in DDP.
        batches: the examples.
        loss_of: takes model and batch, returns mean loss and logits. Default: the model's own loss.
        wrapper: the model as it is spread over ranks, in DDP or sharded by FSDP2. Default None: the model.
        roots: where state of a pass may lie beside the model. Default: nowhere.
        tick: is called after every batch. Default None.

    Raises:
        MeasureError: nothing is trainable, or a perturbation of the weights would be lost or not exact.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_of: LossOf = model_loss,
        wrapper: nn.Module | None = None,
        roots: Iterable[Root] = (),
        tick: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.batches, self.loss_of = model, batches, loss_of
        wrapper = wrapper or model
        self.params = [p for p in model.parameters() if p.requires_grad]
        check_measurable(wrapper, model, self.params)
        self.weights = Weights(model, torch.optim.SGD(self.params, lr=0.0))
        self.groups = rank_groups(wrapper, self.params)
        self.memory = Memory(vectors.local(self.params))
        self.memory.use(list(range(len(self.params))))
        self.owners = [self.params[index] for index in self.memory.firsts()]
        self.roots, self.tick = list(roots), tick
        self.passes = 0
        self.saved: Vector = []

    # Held: inside `with` the weights may be moved.

    def __enter__(self) -> Surface:
        self.modes = [(module, module.training) for module in self.model.modules()]
        self.gradients = [(p, p.grad) for p in self.model.parameters()]
        self.state = State(self.weights, self.roots)
        self.outside = self.state.before_step()
        try:
            self.model.eval()
            for parameter, _ in self.gradients:
                parameter.grad = None
            self.saved = vectors.clone(self.memory.pieces)
            self.moment: Moment = self.state.before_step()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.put_back()
        self.saved = []
        self.outside.restore()
        for module, training in self.modes:
            module.training = training
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        self.state.close()

    def put_back(self) -> None:
        """Weights as they were on entering."""
        if self.saved:
            vectors.copy_(self.memory.pieces, self.saved)
            self._weights_changed()

    def _weights_changed(self) -> None:
        forget_weight_copies()
        self.weights.weights_changed()

    # The loss.

    def loss(self, *displacement: Term, batches: Batches | None = None) -> float:
        """L(w + displacement).

        Args:
            *displacement: pairs of a factor and a vector, which are added up. None: at the weights themselves.
            batches: other examples. Default None: the surface's.
        """
        return self.evaluate(*displacement, batches=batches).loss

    def evaluate(self, *displacement: Term, batches: Batches | None = None) -> Evaluation:
        """Loss and error at w + displacement, as ``loss``."""
        batches = batches or self.batches
        total, wrong, terms, classified = 0.0, 0.0, 0.0, 0.0
        self._begin_pass(displacement)
        try:
            with torch.no_grad():
                for inputs, counts in batches:
                    labels = inputs.get("labels") if hasattr(inputs, "get") else None
                    number = terms_in(inputs, self.model)
                    loss, logits = self.loss_of(self.model, inputs)
                    if counts:
                        mistakes = errors_in(logits, labels)
                        total, terms = total + number * float(loss), terms + number
                        if mistakes is not None:
                            wrong, classified = wrong + mistakes, classified + number
                    if self.tick is not None:
                        self.tick()
        finally:
            self.put_back()
        total, wrong, terms, classified = summed([total, wrong, terms, classified], self.groups, self.device)
        error = wrong / classified if classified and classified == terms else None
        return Evaluation(total / terms if terms else float("nan"), error, batches.examples)

    def gradient(self, *displacement: Term, batches: Batches | None = None) -> tuple[float, Vector]:
        """Loss and gradient at w + displacement, as ``loss``; the gradient is this rank's shard where weights are."""
        total, terms = 0.0, 0.0
        result = [torch.zeros_like(piece) for piece in self.saved]
        self._begin_pass(displacement)
        try:
            with torch.enable_grad():
                for inputs, counts in batches or self.batches:
                    number = terms_in(inputs, self.model) if counts else 0
                    loss, _ = self.loss_of(self.model, inputs)
                    vectors.add_(result, self._gradient_of(loss * number))
                    total, terms = total + number * float(loss.detach()), terms + number
                    if self.tick is not None:
                        self.tick()
        finally:
            self.put_back()
        total, terms = summed([total, terms], self.groups, self.device)
        if self.weights.sharded_modules:  # FSDP2 has taken means over the ranks
            for group in self.groups:
                vectors.scale_(result, torch.distributed.get_world_size(group))
        else:
            for tensor in result if self.groups else ():
                for group in self.groups:
                    torch.distributed.all_reduce(tensor, group=group)
        vectors.scale_(result, 1.0 / terms)
        return total / terms, result

    def _begin_pass(self, displacement: tuple[Term, ...]) -> None:
        if not self.saved:
            raise RuntimeError("a Surface is used in a `with` block, which puts the weights back")
        self.passes += 1
        self.moment.restore()
        try:
            for factor, vector in displacement:
                vectors.add_(self.memory.pieces, vector, factor)
            if displacement:
                self._weights_changed()
        except BaseException:
            self.put_back()
            raise

    def _gradient_of(self, loss: Tensor) -> Vector:
        """A batch's gradient: without `.backward()` where it can be, so that nothing hooked on parameters is called."""
        if not self.weights.sharded_modules:
            found: list[Any] = list(torch.autograd.grad(loss, self.params, allow_unused=True))
        else:
            loss.backward()
            found = [p.grad for p in self.params]
            for parameter in self.params:
                parameter.grad = None
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)]
        return self.memory.folded(vectors.local(found))

    # Vectors.

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.memory.pieces[0].device

    @property
    def weight_norm(self) -> float:
        """||w||."""
        return self.norm(self.saved)

    def norm(self, vector: Vector) -> float:
        """The L2 norm over all weights (and ranks)."""
        norm = vectors.norm(vector, self.owners)
        return float(norm if norm.isfinite() else vectors.norm_of_large(vector, self.owners))

    def dot(self, a: Vector, b: Vector) -> float:
        """The dot product over all weights (and ranks)."""
        return float(vectors.dot(a, b, self.owners))

    def cosine(self, a: Vector, b: Vector) -> float:
        """The cosine of the angle between two vectors; 0 where one is zero."""
        length = self.norm(a) * self.norm(b)
        return self.dot(a, b) / length if length else 0.0

    def ascent(self, gradient: Vector, rho: float, adaptive: bool = False) -> Vector:
        """SAM's displacement of length rho along a gradient, or ASAM's."""
        step = vectors.clone(gradient)
        weights = self.saved if adaptive else None
        size = vectors.norm(step, self.owners)
        vectors.displacement_(step, rho, size, lambda v: vectors.norm(v, self.owners), weights)
        return step

    def towards(self, weights: Mapping[str, Tensor]) -> Vector:
        """The displacement from the weights to others, given by the parameters' names (unsharded)."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        live = vectors.local([weights[names[id(parameter)]] for parameter in self.owners])
        return [there - here for there, here in zip(live, self.saved, strict=True)]

    def normal(self, seed: int) -> Vector:
        """A vector of independent normal numbers, equal on all ranks that hold the same weights."""
        pieces = []
        for index, (piece, owner) in enumerate(zip(self.saved, self.owners, strict=True)):
            noise = Noise(seed, index)
            if vectors.is_sharded(owner):
                whole = noise.normal(owner.shape, owner.dtype, piece.device)
                pieces.append(vectors.local([vectors.shard_of(whole, owner)])[0])  # type: ignore[arg-type]
            else:
                pieces.append(noise.normal(piece.shape, piece.dtype, piece.device))
        return pieces
