"""The methods where some parameters alone are perturbed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .methods import slerp
from .run import Problem, flat, mean_losses
from .specs import Base, Spec


def restricted(model: nn.Module, names: Sequence[str], spec: Spec, base: Base, steps: Any) -> list[dict[str, Any]]:
    """Weights and measures after every step, where the parameters of these names alone are perturbed.

    They are climbed along by their part of the gradient, rho long; XSAM's plane is one of theirs, and all other
    parameters take the gradient found at the top of the climb.
    """
    model = copy.deepcopy(model)
    mask = torch.cat([torch.full((p.numel(),), float(n in names)).double() for n, p in model.named_parameters()])
    s = {"rho": 0.05, "steps": 1, "adaptive": False, "alpha": None, "gamma": 0.5, "mode": None} | spec.settings
    fraction, a = s.get("fraction", 1.0), s["gamma"] / (1 - s["gamma"])
    w, updates, alpha, seen = flat(model), base.reference(), s["alpha"], []
    for step in steps:
        problem = Problem(model, step, mean_losses)
        n_s = max(1, round(fraction * len(step)))
        g = problem.gradient(w)[1]
        T = mask * (w.abs() if s["adaptive"] else torch.ones_like(w))
        displacement, slope = torch.zeros_like(w), g
        for _ in range(s["steps"]):
            displacement = displacement + s["rho"] / s["steps"] * T**2 * slope / ((T * slope).norm() + 1e-12)
            if fraction < 1:
                there, here = (problem.first(n_s).gradient(v) for v in (w + displacement, w))
                slope = g + len(step) / n_s * (there[1] - here[1])
            else:
                slope = problem.gradient(w + displacement)[1]
        extra = None
        if spec.method == "xsam":
            v0, v1 = displacement / displacement.norm(), mask * slope / (mask * slope).norm()
            psi = torch.arccos(torch.clamp(v0 @ v1, -1, 1))
            if alpha is None:
                probes = [problem.loss(w + 2 * s["rho"] * slerp(v0, v1, psi, i / 10)) for i in range(21)]
                alpha = probes.index(max(probes)) / 10
            h = (1 - mask) * slope + (mask * slope).norm() * slerp(v0, v1, psi, alpha)
        elif spec.method == "wsam" and s["mode"] == "decoupled":
            h, extra = g, a * (slope - g)
        else:
            h = (1 - a) * g + a * slope
        w = updates.step(w, h, base.lr)
        if extra is not None:
            w = w - base.lr * extra
        seen.append({"weights": w, "norm": (mask * g).norm().item(), "moved": displacement.norm().item()})
    return seen
