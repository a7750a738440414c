"""XSAM (arXiv 2603.10048, ICLR 2026): look for the highest loss beyond the ascent step, and descend from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..vectors import Vector, add_, add_spending_, reciprocal, scale_, slerp_weights
from .alpha_search import SEARCHES, chosen
from .hyperparameters import hyperparameter, is_count, is_number
from .range_form import RangeForm
from .registry import register
from .sam import SAM
from .signs import Seen, Sign
from .step import Step

AT_THE_END = 8
"""Searches in a row that end there by no chance: under AdamW every second one does (docs/cheaper-steps.md)."""


def alpha_at_the_end(seen: Seen) -> str | None:
    """XSAM's search that would go on beyond its grid."""
    last = seen.method.found_lately[-AT_THE_END:]
    if len(last) < AT_THE_END:
        return None
    highest = seen.method.alpha_max
    if all(alpha >= highest * (1 - 1e-6) for alpha in last):
        return (
            f"alpha was found at the upper end of its grid in {AT_THE_END} searches in a row: the highest loss lies "
            f"beyond {seen.named('alpha_max')}. Raise it, or lower {seen.argument('rho_max')}"
        )
    if all(alpha <= highest * 1e-6 for alpha in last):
        return (
            f"alpha was found at the lower end of its grid, 0, in {AT_THE_END} searches in a row: the gradient after "
            f"the ascent adds nothing. Lower {seen.argument('rho_max')}, or use optim='sam'"
        )
    return None


@register
@dataclasses.dataclass
class XSAM(SAM):
    """Descend along the direction of the plane (displacement, gradient there) that points to the highest loss.

        v0 = (w_k - w_0)/||w_k - w_0||,  v1 = g_k/||g_k||,  psi = angle(v0, v1)
        v(alpha) = sin((1-alpha) psi)/sin(psi) v0 + sin(alpha psi)/sin(psi) v1
        alpha* = argmax over the grid of L_B(w_0 + rho_max v(alpha))          (now and then)
        BaseOpt(w_0, grad = ||g_k|| v(alpha*))

    alpha 1 is SAM.
    """

    name: ClassVar[str] = "xsam"
    paper: ClassVar[str] = "2603.10048"
    bibtex: ClassVar[str] = """\
@inproceedings{chen2026xsam,
  title         = {Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation},
  author        = {Chen, Jianlong and Zhou, Zhiming},
  booktitle     = {International Conference on Learning Representations (ICLR)},
  year          = {2026},
  eprint        = {2603.10048},
  archivePrefix = {arXiv}
}"""
    scopes: ClassVar[tuple[str, ...]] = ("global",)
    metrics: ClassVar[tuple[str, ...]] = ("xsam_alpha", "xsam_psi")
    radii: ClassVar[tuple[str, ...]] = ("rho", "rho_max")
    range_forms: ClassVar[tuple[RangeForm, ...]] = (RangeForm("XSAM, rho_max 2 rho", reach=2.0),)
    shown: ClassVar[Mapping[str, str]] = {"alpha": "alpha_in_use"}
    signs: ClassVar[tuple[Sign, ...]] = (alpha_at_the_end,)
    without_epochs: ClassVar[Mapping[str, Any]] = {"refresh": 100}

    rho_max: float | None = hyperparameter(
        None,
        help="Distance at which the loss is probed to choose alpha. Default: 2 rho (the authors' choice on CIFAR-100).",
        require="must be a finite number >= 0 (or unset for 2 rho)",
        valid=lambda v: v is None or (is_number(v) and v >= 0),
    )
    alpha: float | None = hyperparameter(
        None,
        help="Fix alpha instead of searching for it (1 is SAM).",
        require="must be a finite number (or unset to search)",
        valid=lambda v: v is None or is_number(v),
    )
    alpha_max: float = hyperparameter(
        2.0,
        help="Upper end of the grid that is searched for alpha; the lower end is 0.",
        require="must be a finite number > 0",
        valid=lambda v: is_number(v) and v > 0,
    )
    alpha_points: int = hyperparameter(
        21,
        help="Number of points of that grid.",
        require="must be a whole number >= 2",
        valid=lambda v: is_count(v) and v >= 2,
        most=10_000,
    )
    search: str = hyperparameter(
        "coarse",
        help="How the grid is searched: `coarse` probes at most 8 of its points, closing in on the highest loss; "
        "`grid` probes all of them, as the authors do.",
        require="must be one of coarse, grid",
        valid=lambda v: v in SEARCHES,
        choices=tuple(SEARCHES),
    )
    refresh: int | str = hyperparameter(
        "epoch",
        help="When alpha is searched anew: `epoch` (on the first step of every epoch) or an integer N (every N "
        "optimizer steps); always on the first step. Steps are the sharpness-aware ones.",
        require="must be 'epoch' or a whole number >= 1",
        valid=lambda v: v == "epoch" or is_count(v),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.found_alpha: float | None = None
        self.found_lately: list[float] = []
        self.steps_taken = 0
        self.epoch_begins = False

    @classmethod
    def searches_by_epochs(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings["refresh"] == "epoch")

    @property
    def described(self) -> str:
        others = dataclasses.replace(self, alpha=None, refresh="epoch")
        every = "epoch" if self.refresh == "epoch" else f"{self.refresh} steps"
        alpha = f"searched every {every}" if self.alpha is None else f"{self.alpha}"
        return f"{super(XSAM, others).described}, alpha {alpha}"

    def start_epoch(self) -> None:
        self.epoch_begins = True

    @property
    def probes(self) -> bool:
        return self.search_due

    @property
    def alpha_in_use(self) -> float | None:
        """The fixed alpha, else what the last search found (None before the first)."""
        return self.found_alpha if self.alpha is None else self.alpha

    @property
    def search_due(self) -> bool:
        """Whether the coming step searches for alpha."""
        if self.alpha is not None:
            return False
        due = self.steps_taken % self.refresh == 0 if isinstance(self.refresh, int) else self.epoch_begins
        return due or self.found_alpha is None

    def run(self, step: Step) -> None:
        v0 = step.climb(self.rho / self.steps, self.adaptive)
        step.replay()
        for _ in range(self.steps - 1):
            displacement = step.climb(self.rho / self.steps, self.adaptive)
            add_(displacement, step.perturbed(step.pad(v0)))
            v0 = displacement
            step.replay()
        # Parameters that are not perturbed have no part in the plane, and keep the gradient that was found.
        g, v0 = step.perturbed(step.gradient()), step.perturbed(step.pad(v0))
        v0_norm, g_norm = step.norm(v0), step.norm(g)
        psi = step.angle(v0, g, v0_norm, g_norm)

        if self.search_due:
            self.found_alpha = self.find_alpha(step, v0, g, v0_norm, g_norm, psi)
            if self.found_alpha is not None:
                self.found_lately = [*self.found_lately, self.found_alpha][-AT_THE_END:]
        self.steps_taken += 1
        self.epoch_begins = False
        alpha = 1.0 if self.alpha_in_use is None else self.alpha_in_use

        c0, c1 = slerp_weights(psi, alpha)
        scale_(g, c1)
        add_spending_(g, v0, g_norm * c0 * reciprocal(v0_norm))
        step.metrics.update(xsam_alpha=alpha, xsam_psi=psi)

    def find_alpha(
        self, step: Step, v0: Vector, g: Vector, v0_norm: Tensor, g_norm: Tensor, psi: Tensor
    ) -> float | None:
        """alpha* on the grid: the smallest alpha of highest finite loss. If none is finite, what was found before.

        Losses within rounding of the highest are as high.
        """
        radius = float(2 * self.rho if self.rho_max is None else self.rho_max)  # a tensor where the learning rate is
        alphas = [self.alpha_max * i / (self.alpha_points - 1) for i in range(self.alpha_points)]
        # The factors are read on the host: the search synchronises anyway, to compare its losses.
        unit0, unit1 = float(reciprocal(v0_norm)), float(reciprocal(g_norm))
        dtype = psi.dtype

        def losses_at(indices: list[int]) -> list[float]:
            nonlocal dtype
            losses = []
            for index in indices:
                c0, c1 = (float(c) for c in slerp_weights(psi, alphas[index]))
                losses.append(step.probe([(radius * c0 * unit0, v0), (radius * c1 * unit1, g)]))
            values = step.mean_over_ranks(torch.stack(losses))
            dtype = values.dtype
            return values.tolist()

        found = chosen(SEARCHES[self.search](self.alpha_points, losses_at), dtype)
        return self.found_alpha if found is None else alphas[found]

    def state_dict(self) -> dict[str, Any]:
        return {"alpha": self.found_alpha, "steps_taken": self.steps_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found_alpha = state.get("alpha")
        self.steps_taken = state.get("steps_taken", 0)
