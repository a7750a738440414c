"""Notices what a pass does with gradients besides leaving them in p.grad: for replays and probes to allow for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .for_a_while import run_under
from .overridable import make_backward_overridable

make_backward_overridable()
BACKWARD = (torch.Tensor.backward, torch.autograd.backward)
_GRAD: Any = torch.Tensor.grad  # a descriptor
_GET, _SET, _DELETE = _GRAD.__get__, _GRAD.__set__, _GRAD.__delete__
_ZERO = (torch.Tensor.zero_, torch.zero_, torch._foreach_zero_)


def reads_gradient(func: Any) -> bool:
    """Whether a function that a ``TorchFunctionMode`` sees is the access to some tensor's ``.grad``."""
    return func in (_GET, _SET, _DELETE)


class Watch(TorchFunctionMode):
    """On in a micro-batch's first pass, in some steps only: it costs a little in every call of torch's.

    What happens within a backward pass itself is not seen.

    Args:
        parameters: the base optimizer's.
        asks_factors: whether to find ``factors``.
        ignored: whose ``.grad`` others read.

    Attributes:
        backwards: how many backward passes were run.
        touches: whether p.grad of a parameter was read or set.
        drops: whether a gradient that was there was set to None or zero.
        differentiates: whether the loss is made from derivatives: of ``torch.autograd.grad``, or of a backward pass
            whose gradients were read afterwards.
        leaves: what the backward passes have left gradients on, by id.
        factors: for every backward pass the factor on the mean that it began from, as ``factor_on_mean`` has it.
    """

    def __init__(
        self, parameters: Iterable[Tensor], asks_factors: bool = False, ignored: Iterable[Tensor] = ()
    ) -> None:
        super().__init__()
        self.ignored = {id(p) for p in ignored}
        self.asks_factors = asks_factors
        self.parameters = {id(p) for p in parameters}
        self.backwards = 0
        self.touches = self.drops = self.differentiates = False
        self.leaves: dict[int, Tensor] = {}
        self.factors: list[float | None] = []
        self.gradients: dict[int, Tensor] = {}

    def run(self, closure: Callable[[], Any]) -> Any:
        """Call it under watch."""
        return run_under(self, closure)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in BACKWARD:
            self._begins(args[0] if args else kwargs.get("tensors"))
        elif func is torch.autograd.grad:
            self.differentiates = True
        elif reads_gradient(func) and id(args[0]) not in self.ignored:
            self.differentiates |= self.backwards > 0
            if id(args[0]) in self.parameters:
                self.touches = True
                present = args[0].grad
                if present is not None:
                    self.gradients[id(present)] = present
                    self.drops |= func == _DELETE or (func == _SET and args[1] is None)
        elif func in _ZERO:
            zeroed = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
            self.drops |= any(id(t) in self.gradients for t in zeroed)
        return func(*args, **kwargs)

    def _begins(self, roots: Any) -> None:
        self.backwards += 1
        roots = [t for t in ([roots] if isinstance(roots, Tensor) else list(roots or ())) if t.requires_grad]
        self.leaves.update((id(leaf), leaf) for leaf in leaves_of(roots))
        if self.asks_factors:
            self.factors += [factor_on_mean(root.grad_fn) for root in roots]


def leaves_of(roots: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors that a backward pass from these roots leaves a gradient on."""
    seen = set()
    nodes = []
    for root in roots:
        if root.grad_fn is None:
            yield root
        else:
            nodes.append(root.grad_fn)
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of torch's AccumulateGrad
        if isinstance(variable, Tensor):
            yield variable
        nodes += [following for following, _ in node.next_functions if following is not None]


_MEANS = ("MeanBackward",)
_LOSSES = ("NllLoss", "MseLoss", "BinaryCrossEntropy", "SmoothL1Loss", "HuberLoss", "SoftMarginLoss", "KlDivBackward")
_SAME = ("ToCopy", "View", "Squeeze", "Unsqueeze", "Clone", "Reshape", "Alias")


def factor_on_mean(node: Any) -> float | None:
    """By what a mean over examples was multiplied to make a loss; None where that cannot be told from its graph.

    1 for ``cross_entropy(...)``, 1/4 for ``cross_entropy(...) / 4``.

    Args:
        node: the loss's ``grad_fn``.
    """
    factor = 1.0
    while node is not None:
        name = type(node).__name__
        following = [n for n, _ in node.next_functions]
        if name.startswith(_MEANS):
            return factor
        if name.startswith(_LOSSES):
            return factor if getattr(node, "_saved_reduction", None) == 1 else None  # torch's number for "mean"
        if name.startswith("AddBackward"):
            factors = {factor_on_mean(n) for n in following if n is not None}
            inner = factors.pop() if len(factors) == 1 else None
            return None if inner is None else factor * inner
        if name.startswith(("DivBackward", "MulBackward")):
            other = _number(node, "_saved_other") if following[0] is not None else _number(node, "_saved_self")
            if other is None or sum(n is not None for n in following) != 1:
                return None
            factor = factor / other if name.startswith("Div") and other else factor * other
        elif not name.startswith(_SAME):
            return None
        node = next((n for n in following if n is not None), None)
    return None


def _number(node: Any, name: str) -> float | None:
    """A number that a node has saved; None if it is on an accelerator, where reading it would wait."""
    saved = getattr(node, name, None)
    if not isinstance(saved, Tensor) or saved.numel() != 1 or saved.device.type != "cpu":
        return None
    return float(saved.detach())
