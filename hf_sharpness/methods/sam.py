"""SAM (arXiv 2010.01412) and ASAM (arXiv 2102.11600)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from .base import Method
from .base_kind import BaseKind
from .hyperparameters import hyperparameter, is_count, is_number
from .options import SCOPES
from .range_form import RangeForm
from .registry import register
from .step import Step

ASAM = {
    "2102.11600": """\
@inproceedings{kwon2021asam,
  title         = {{ASAM}: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks},
  author        = {Kwon, Jungmin and Kim, Jeongseop and Park, Hyunseo and Choi, In Kwon},
  booktitle     = {International Conference on Machine Learning (ICML)},
  year          = {2021},
  eprint        = {2102.11600},
  archivePrefix = {arXiv}
}"""
}
"""The paper of ``adaptive``."""


@register
@dataclasses.dataclass
class SAM(Method):
    """Sharpness-aware minimisation: descend with the gradient found a step of length rho up the slope.

        w_0 = w,  w_{j+1} = w_j + (rho/k) g_j / ||g_j||,  g_j = grad L_B(w_j);   BaseOpt(w, grad = g_k)

    ASAM measures the step relative to the weights: the direction is ``T^2 g / ||T g||`` with ``T = |w|``.
    """

    name: ClassVar[str] = "sam"
    paper: ClassVar[str] = "2010.01412"
    bibtex: ClassVar[str] = """\
@inproceedings{foret2021sam,
  title         = {Sharpness-Aware Minimization for Efficiently Improving Generalization},
  author        = {Foret, Pierre and Kleiner, Ariel and Mobahi, Hossein and Neyshabur, Behnam},
  booktitle     = {International Conference on Learning Representations (ICLR)},
  year          = {2021},
  eprint        = {2010.01412},
  archivePrefix = {arXiv}
}"""
    allows_fraction: ClassVar[bool] = True
    scopes: ClassVar[tuple[str, ...]] = tuple(SCOPES)
    range_forms: ClassVar[tuple[RangeForm, ...]] = (RangeForm("SAM"),)

    rho: float = hyperparameter(
        0.05,
        help="Total length of the ascent step (the radius of the neighbourhood). .05 in the paper (CIFAR-10 and "
        "ImageNet), .15 and .2 in later ones (CIFAR from scratch, SGD); ASAM wants about 10 times as much (.5 - 2).",
        require="must be a finite number >= 0",
        valid=lambda v: is_number(v) and v >= 0,
    )
    adaptive: bool = hyperparameter(
        False,
        help="Scale the ascent step by the size of each weight (ASAM, arXiv 2102.11600).",
        require="must be true or false",
        valid=lambda v: isinstance(v, bool),
    )
    steps: int = hyperparameter(
        1,
        help="Number of ascent steps k, each of length rho/k; every one costs a forward and a backward pass.",
        require="must be a whole number >= 1",
        valid=is_count,
        most=1_000,
    )

    @property
    def title(self) -> str:
        return super().title + (" (adaptive, ASAM)" if self.adaptive else "")

    @property
    def cited(self) -> dict[str, str]:
        return {**super().cited, **(ASAM if self.adaptive else {})}

    @classmethod
    def meanings(cls, settings: Mapping[str, Any], base: BaseKind) -> dict[str, str]:
        asam = "ASAM (adaptive), which wants about 10 times SAM's value"
        return {**super().meanings(settings, base), "rho": asam if settings["adaptive"] else "SAM"}

    @property
    def usual(self) -> dict[str, float]:
        return {name: length * (10 if self.adaptive else 1) for name, length in super().usual.items()}

    @property
    def replays(self) -> int:
        return self.steps

    def run(self, step: Step) -> None:
        for _ in range(self.steps):
            step.climb(self.rho / self.steps, self.adaptive, returned=False)
            step.replay()
