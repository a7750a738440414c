"""The declarative table the tests are parametrised over: one line per method variant, one per base optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from .bases import SGD, AdamW
from .methods import Sam, Wsam, Xsam
from .phases import InSteps, sharp_steps

REFERENCES = {"sam": Sam, "wsam": Wsam, "xsam": Xsam}
PREFIXED = {"mode": "wsam_mode", "gamma": "wsam_gamma", "refresh": "xsam_refresh"}


@dataclass(frozen=True)
class Spec:
    """A method with its settings, in the three forms the tests need."""

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    def ours(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        import hf_sharpness

        return getattr(hf_sharpness, self.method.upper())(model, optimizer, **self.settings)

    def reference(self) -> Any:
        settings = dict(self.settings)
        total = settings.pop("total_steps", None)
        limits = {name: str(settings.pop(name)) for name in ("start", "stop") if name in settings}
        method = REFERENCES[self.method](**settings)
        return method if total is None else InSteps(method, sharp_steps(total, **limits))

    def arguments(self) -> dict[str, Any]:
        """The same as TrainingArguments, which know the length of the training."""

        def argument(key: str) -> str:
            return f"xsam_{key}" if key.startswith(("alpha", "rho_max")) else PREFIXED.get(key, f"sam_{key}")

        return {"optim": self.method} | {
            argument(key): value for key, value in self.settings.items() if key != "total_steps"
        }

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Base:
    """A base optimizer with its settings, in the three forms the tests need."""

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def adam(self) -> bool:
        return self.name.startswith("adamw")

    def torch(self, parameters: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, **options)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, **options
        )

    def reference(self, weight_decay: torch.Tensor | None = None) -> SGD | AdamW:
        weight_decay = self.weight_decay if weight_decay is None else weight_decay
        return AdamW(weight_decay=weight_decay) if self.adam else SGD(self.momentum, weight_decay)

    def arguments(self) -> dict[str, Any]:
        name = {"base_optim": "adamw_torch"} if self.adam else {"base_optim": "sgd"}
        options = {"optim_args": f"momentum={self.momentum}"} if self.momentum else {}
        return name | options | {"learning_rate": self.lr, "weight_decay": self.weight_decay}

    def __str__(self) -> str:
        return self.name


BASES = [
    Base("sgd", lr=0.2),
    Base("sgd-momentum", lr=0.05, momentum=0.9, weight_decay=0.01),
    Base("adamw", lr=0.01, weight_decay=0.1),
]

SPECS = [
    Spec("sam", "sam", {"rho": 0.2}),
    Spec("sam-k3", "sam", {"rho": 0.3, "steps": 3}),
    Spec("asam", "sam", {"rho": 0.5, "adaptive": True}),
    Spec("asam-k2", "sam", {"rho": 0.5, "adaptive": True, "steps": 2}),
    Spec("wsam-coupled", "wsam", {"rho": 0.2, "mode": "coupled", "gamma": 0.6}),
    Spec("wsam-coupled-weak", "wsam", {"rho": 0.2, "mode": "coupled", "gamma": 0.2}),
    Spec("wsam-coupled-k3", "wsam", {"rho": 0.3, "mode": "coupled", "gamma": 0.8, "steps": 3}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.2, "mode": "decoupled", "gamma": 0.9}),
    Spec("wsam-decoupled-k3", "wsam", {"rho": 0.3, "mode": "decoupled", "gamma": 0.5, "steps": 3}),
    Spec("wsam-decoupled-asam", "wsam", {"rho": 0.5, "mode": "decoupled", "gamma": 0.7, "adaptive": True}),
    Spec("wsam-preconditioned", "wsam", {"rho": 0.2, "mode": "preconditioned", "gamma": 0.5}),
    Spec("wsam-preconditioned-k2", "wsam", {"rho": 0.1, "mode": "preconditioned", "gamma": 0.3, "steps": 2}),
    Spec("xsam", "xsam", {"rho": 0.3}),
    Spec("xsam-k3", "xsam", {"rho": 0.6, "steps": 3}),
    Spec("xsam-by-steps", "xsam", {"rho": 0.3, "rho_max": 1.2, "refresh": 4, "alpha_max": 2.4, "alpha_points": 9}),
    Spec("xsam-beyond", "xsam", {"rho": 0.3, "alpha": 1.7}),
    Spec("xsam-adaptive", "xsam", {"rho": 0.5, "alpha": 0.4, "adaptive": True, "steps": 2}),
]


def by_name(*names: str) -> list[Spec]:
    """The specs of those names."""
    return [next(spec for spec in SPECS if spec.name == name) for name in names]
