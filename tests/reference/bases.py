"""Base optimizers on one flat vector of weights. `lr` and `weight_decay` are numbers or one number per element."""

from __future__ import annotations

import torch
from torch import Tensor


class SGD:
    """torch.optim.SGD: weight decay added to the gradient, momentum without dampening."""

    def __init__(self, momentum: float = 0.0, weight_decay: float | Tensor = 0.0):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocity: Tensor | None = None

    def step(self, w: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
        g = g + self.weight_decay * w
        self.velocity = g if self.velocity is None else self.momentum * self.velocity + g
        return w - lr * self.velocity

    def preconditioner(self) -> float:
        """What the last step divided by, beside the learning rate."""
        return 1.0


class AdamW:
    """torch.optim.AdamW: decoupled weight decay, bias-corrected moments, eps outside the root."""

    def __init__(
        self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float | Tensor = 0.0
    ):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.t, self.m, self.v = 0, 0.0, 0.0

    def step(self, w: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m_hat, v_hat = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        w = w - lr * self.weight_decay * w
        return w - lr * m_hat / (v_hat.sqrt() + self.eps)

    def preconditioner(self) -> Tensor:
        """sqrt(v_hat) + eps of the last step."""
        return (self.v / (1 - self.betas[1] ** self.t)).sqrt() + self.eps


def clip_coefficient(g: Tensor, max_norm: float | None) -> Tensor | float:
    """The factor torch.nn.utils.clip_grad_norm_ multiplies the gradient by."""
    return 1.0 if max_norm is None else torch.clamp(max_norm / (g.norm() + 1e-6), max=1.0)
