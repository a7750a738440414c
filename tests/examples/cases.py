"""The methods of examples/methods/, each with settings in which all of it is at work, and its reference."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from references import FriendlySam, Gsam, LeSam, LookSam

ROOT = Path(__file__).resolve().parents[2] / "examples" / "methods"


@dataclass(frozen=True)
class Example:
    """A package of examples/methods/."""

    folder: str
    cls: str
    reference: Any
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return ROOT / self.folder

    @property
    def module(self) -> str:
        return f"hf_sharpness_{self.folder}"

    @property
    def method_class(self) -> Any:
        if str(self.path) not in sys.path:
            sys.path.append(str(self.path))
        return getattr(importlib.import_module(self.module), self.cls)

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings as TrainingArguments; the class must be registered."""
        name = self.method_class.name
        return {"optim": name, **{f"{name}_{key}": value for key, value in self.settings.items()}}

    def method(self) -> Any:
        return self.method_class(**self.settings)

    def expected(self, rates: Sequence[float]) -> Any:
        """The reference for a training with these learning rates."""
        return self.reference(rates, **self.settings)

    def __str__(self) -> str:
        return self.folder


EXAMPLES = [
    Example("gsam", "GSAM", Gsam, {"rho": 0.3, "rho_min": 0.1, "alpha": 0.5}),
    Example("friendly_sam", "FriendlySAM", FriendlySam, {"rho": 0.3, "sigma": 0.8, "decay": 0.7}),
    Example("looksam", "LookSAM", LookSam, {"rho": 0.3, "k": 3, "alpha": 0.6}),
    Example("lesam", "LESAM", LeSam, {"sigma": 0.05, "rho_max": 0.08, "anneal_from": 0.4}),
]
