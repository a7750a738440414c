"""The methods for training loops of your own (plain PyTorch, Accelerate): a sharpness-aware ``backward``.

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

from typing import Any

from ..methods import METHODS
from .made import loop_class as loop_class
from .sharpness_aware import SharpnessAware as SharpnessAware


def __getattr__(name: str) -> Any:
    """The plain-loop class of the registered method whose class has that name."""
    for method in METHODS.values():
        if method.__name__ == name:
            return loop_class(method)  # type: ignore[arg-type]  # classes are hashable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
