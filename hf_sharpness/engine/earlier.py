"""Gradients that are there before a pass, from a backward of the user's own: set aside, and added at the end."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .. import vectors
from .parallel import unreduced_gradients
from .scopes import Scope
from .weights import Weights


class EarlierGradients:
    """Takes the gradients out of ``.grad``, by reference, so that what follows begins without any.

    Args:
        parameters: whose gradients to take.
        in_buckets: whether DDP holds gradients in buckets of its own, which the next pass overwrites: copied then.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], in_buckets: bool = False) -> None:
        self.gradients: dict[nn.Parameter, Tensor] = {}
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None:
                self.gradients[parameter] = gradient.detach().clone() if in_buckets else gradient
                parameter.grad = None

    def add_back(self) -> None:
        """p.grad <- p.grad + what was set aside; in the tensor that was there, where autograd would add to that."""
        sums: list[tuple[Tensor, Tensor]] = []
        for parameter, gradient in self.gradients.items():
            now = parameter.grad
            if now is not None and not _takes(gradient, now):
                sums.append((now, gradient))
                continue
            if now is not None:
                sums.append((gradient, now))
            parameter.grad = gradient
        vectors.add_(vectors.local([total for total, _ in sums]), vectors.local([other for _, other in sums]))

    def put_back(self) -> None:
        """p.grad <- what was set aside; what has come since is dropped."""
        for parameter, gradient in self.gradients.items():
            parameter.grad = gradient

    def copied(self) -> EarlierGradients:
        """The same, with tensors that ``add_back`` leaves alone."""
        copy = EarlierGradients(())
        copy.gradients = {p: g.detach().clone() for p, g in self.gradients.items()}
        return copy


def _takes(gradient: Tensor, other: Tensor) -> bool:
    """Whether another gradient can be added to one in place."""
    if gradient.requires_grad or gradient.dtype != other.dtype or gradient.layout != other.layout:
        return False
    return 0 not in gradient.stride() or not gradient.numel()  # it is not expanded


class Fingerprint:
    """Which gradients there are, and how often each was written to: differs once one was added to, changed or dropped.

    Args:
        parameters: whose ``.grad`` to look at.
        unreduced: gradients that wait elsewhere to be reduced over ranks (``parallel.unreduced_gradients``).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], unreduced: Iterable[Tensor] = ()) -> None:
        self.gradients = [g for g in (p.grad for p in parameters) if g is not None] + list(unreduced)
        self.versions = [g._version for g in self.gradients]

    def differs_from(self, other: Fingerprint) -> bool:
        """Whether anything has changed since ``other`` was taken."""
        return len(self.gradients) != len(other.gradients) or any(
            a is not b or v != w
            for a, b, v, w in zip(self.gradients, other.gradients, self.versions, other.versions, strict=True)
        )


BETWEEN_MICRO_BATCHES = (
    "a gradient was added or changed between two micro-batches of one optimizer step, by code that the further passes "
    "over these micro-batches cannot repeat. Do it in the loss function, before the step's first micro-batch (what is "
    "in p.grad then is added to the method's gradient), or once the gradient is complete (in on_pre_optimizer_step)"
)
UNREDUCED = (
    "FSDP2 holds gradients that it has not reduced over ranks yet, from a backward pass that the step does not know: a "
    "sharpness-aware step cannot tell them from its own. Let that backward pass reduce its gradients, or give the "
    "micro-batches to one call: method.backward([closure, ...])"
)
UNSEEN = (
    "a backward pass was run outside the steps that DeepSpeed is to make, which cannot tell its gradient from theirs: "
    "do it in the loss function (compute_loss), or in a training_step of your own"
)


class Arrivals:
    """Looks before every micro-batch of a step at the gradients that are there.

    Args:
        weights: where weights and gradients are.
        scope: how gradients are reduced over ranks.

    Attributes:
        earlier: what was there when the passes began.
    """

    def __init__(self, weights: Weights, scope: Scope) -> None:
        self.weights = weights
        self.scope = scope
        self.earlier = EarlierGradients(())
        self.of_step: EarlierGradients | None = None
        self.noted: Fingerprint | None = None

    def look(self, begins: bool) -> None:
        """Set aside what is there as the passes begin; between micro-batches nothing may come or change.

        Raises:
            RuntimeError: something has, or is where it cannot be told from the step's own.
        """
        if self.weights.has_unseen_gradient() and (begins or not self.weights.gradients_are_visible):
            raise RuntimeError(UNREDUCED if self.weights.gradients_are_visible else UNSEEN)
        if begins:
            self.earlier = EarlierGradients(self.weights.receivers(), self.scope.gradients_are_views)
            if self.of_step is None:
                self.of_step = self.earlier.copied() if self.scope.is_each_micro_batch else self.earlier
        elif self.noted is not None and self._fingerprint().differs_from(self.noted):
            raise RuntimeError(BETWEEN_MICRO_BATCHES)

    def note(self) -> None:
        """A micro-batch has ended which is not the step's last."""
        self.weights.note_passes()
        self.noted = self._fingerprint()

    def take_back(self) -> None:
        """The step has failed: its gradients are dropped, what was there before it is there again."""
        if self.of_step is not None:
            self.weights.drop_gradients()
            self.of_step.put_back()

    def _fingerprint(self) -> Fingerprint:
        return Fingerprint(self.weights.receivers(), unreduced_gradients(self.weights.model))
