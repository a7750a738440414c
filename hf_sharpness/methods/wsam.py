"""WSAM (arXiv 2305.15817, KDD 2023): sharpness as a weighted regulariser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ..vectors import add_, scale_
from .base_kind import BaseKind
from .hyperparameters import hyperparameter, is_number
from .range_form import RangeForm
from .registry import register
from .sam import SAM
from .signs import FEW, LONG, Seen, Sign, mean
from .step import Step

MODES = ("auto", "coupled", "decoupled", "preconditioned")
NEGLIGIBLE_GAMMA = 1e-20
"""Below it the sharpness term is lost in rounding whatever the weights' type, and 1/a would overflow: the limit, 0."""
DEFAULT_GAMMA = {"decoupled": 0.9, "coupled": 0.6, "preconditioned": 0.5}


def resolved_mode(mode: str, base: BaseKind) -> str:
    """The mode that ``auto`` stands for around such a base optimizer, or the mode itself.

    The authors' decoupled mode was made for SGD with momentum mu, which weighs its term by (1 - mu) a. Without momentum
    the two are one update, and the decoupled mode's gamma .9 would be nine times SAM's weight.
    """
    return mode if mode != "auto" else "decoupled" if base == "momentum" else "coupled"


def does_nothing(seen: Seen) -> str | None:
    """Decoupled WSAM whose term is lost beside the base optimizer's step."""
    last = seen.ratios[-LONG:]
    if len(last) < LONG or max(last) >= 0.01:
        return None
    return (
        f"{seen.named('mode')} does next to nothing here: wsam_step_ratio, the size of its step over the base "
        f"optimizer's, has been below 1 % for {LONG} logs (now {last[-1]:.2g}). Use wsam_mode='coupled'"
    )


def gamma_too_close_to_1(seen: Seen) -> str | None:
    """Coupled WSAM that climbs the loss: the coefficient of g is far below zero, and the loss rises."""
    method = seen.method
    if method.mode != "coupled" or len(seen.losses) < 2 * FEW:
        return None
    gamma = method.gamma
    coefficient = (1 - 2 * gamma) / (1 - gamma)
    means = [mean(seen.losses[end - FEW : end]) for end in range(FEW, len(seen.losses) + 1)]
    lowest = min(seen.losses[0], *means)
    if coefficient > -2 or not means[-1] > 1.2 * lowest:
        return None
    return (
        f"{seen.named('gamma')} is too close to 1 for the coupled mode: the gradient at the weights counts "
        f"{coefficient:.2g} times, and the loss rises (from {lowest:.3g} to {means[-1]:.3g}). Use "
        f"{seen.argument('gamma')}={DEFAULT_GAMMA['coupled']} or less"
    )


@register
@dataclasses.dataclass
class WSAM(SAM):
    """Minimise ``L(w) + a [max_{||d||<=rho} L(w+d) - L(w)]`` with ``a = gamma / (1 - gamma)``.

        COUPLED         h = (1 - a) g + a g_s;  BaseOpt(w, grad = h)
        DECOUPLED       BaseOpt(w, grad = g);   w <- w - lr a (g_s - g)
        PRECONDITIONED  BaseOpt(w, grad = g);   w <- w - lr a (g_s - g) / P

    P is what the base optimizer divides its own step by: Adam's ``sqrt(v_hat) + eps`` after this step, 1 for SGD. The
    first two modes are the paper's; the third is this package's, and gives the term the units of an Adam step.

    gamma 0 is the base optimizer, gamma 1/2 coupled is SAM. The modes weigh sharpness differently (with momentum mu
    the decoupled weight is (1 - mu) a), hence a default gamma for each.
    """

    name: ClassVar[str] = "wsam"
    paper: ClassVar[str] = "2305.15817"
    bibtex: ClassVar[str] = """\
@inproceedings{yue2023wsam,
  title         = {Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term},
  author        = {Yue, Yun and Jiang, Jiadi and Ye, Zhiling and Gao, Ning and Liu, Yongchao and Zhang, Ke},
  booktitle     = {ACM SIGKDD Conference on Knowledge Discovery and Data Mining (KDD)},
  year          = {2023},
  eprint        = {2305.15817},
  archivePrefix = {arXiv}
}"""
    allows_fraction: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("wsam_step_ratio",)
    step_ratio: ClassVar[str] = "wsam_step_ratio"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "WSAM coupled": {"mode": "coupled"},
        "WSAM decoupled": {"mode": "decoupled"},
    }
    range_forms: ClassVar[tuple[RangeForm, ...]] = (
        RangeForm("WSAM coupled, gamma .6", weight=DEFAULT_GAMMA["coupled"] / (1 - DEFAULT_GAMMA["coupled"])),
    )
    """Preconditioned with gamma .5 it has SAM's weight; around Adam the decoupled mode's is not in its step's units."""
    without_after_step: ClassVar[tuple[str, Any] | None] = ("mode", "coupled")
    signs: ClassVar[tuple[Sign, ...]] = (does_nothing, gamma_too_close_to_1)

    mode: str = hyperparameter(
        "auto",
        help="`decoupled` (the authors' weight decouple: the sharpness term is added to the weights after the base "
        "optimizer's step), `preconditioned` (the same, divided by Adam's or AdamW's own sqrt(v_hat) + eps), `coupled` "
        "(it is part of the gradient), or `auto`: decoupled for SGD with momentum, coupled for SGD without and for an "
        "adaptive base (Adam and the like).",
        require=f"must be one of {', '.join(MODES)}",
        valid=lambda v: v in MODES,
        choices=MODES,
    )
    gamma: float | None = hyperparameter(
        None,
        help="Weight of sharpness, 0 <= gamma < 1; 0 is the base optimizer. Default: .9 decoupled (the authors' value; "
        "the paper recommends .8 - .95), .6 coupled, .5 preconditioned. One mode's gamma is not the other's.",
        require="must be a number with 0 <= gamma < 1 (or unset for the mode's default)",
        valid=lambda v: v is None or (is_number(v) and 0 <= v < 1),
    )

    @classmethod
    def meanings(cls, settings: Mapping[str, Any], base: BaseKind) -> dict[str, str]:
        mode = resolved_mode(settings["mode"], base)
        return {**super().meanings(settings, base), "gamma": f"the {mode} mode"}

    def resolved(self, base: BaseKind) -> WSAM:
        mode = resolved_mode(self.mode, base)
        return dataclasses.replace(self, mode=mode, gamma=DEFAULT_GAMMA[mode] if self.gamma is None else self.gamma)

    @property
    def described(self) -> str:
        others = dataclasses.replace(self, mode="auto", gamma=None)
        return f"{super(WSAM, others).described}, gamma {self.gamma} {self.mode}"

    @property
    def usual(self) -> dict[str, float]:
        by_default = {"gamma": DEFAULT_GAMMA[self.mode]} if self.mode in DEFAULT_GAMMA else {}  # `auto` has none yet
        return {**super().usual, **by_default}

    @property
    def is_plain(self) -> bool:
        return self.gamma is not None and self.gamma < NEGLIGIBLE_GAMMA

    @property
    def adds_after_step(self) -> bool:
        return self.mode in ("decoupled", "preconditioned") and not self.is_plain

    @property
    def preconditions_term(self) -> bool:
        return self.mode == "preconditioned" and self.adds_after_step

    @property
    def accumulates(self) -> bool:
        return self.mode == "coupled"

    def run(self, step: Step) -> None:
        assert self.gamma is not None  # filled in by `resolved`
        a = self.gamma / (1 - self.gamma)
        step.climb_keeping_gradient(self.rho / self.steps, self.adaptive)
        g = step.take_gradient()
        for _ in range(self.steps - 1):
            step.replay()
            step.climb(self.rho / self.steps, self.adaptive, returned=False)

        if self.mode == "coupled":
            # h / a = (1 - a)/a g + g_s needs no copy of g: the last backward adds g_s to what waits in p.grad.
            scale_(g, (1 - a) / a)
            step.put_gradient(step.pad(g))
            step.replay(accumulate=True)
            scale_(step.gradient(), a)
        else:
            step.replay()
            difference = step.take_gradient()
            g = step.pad(g)
            add_(difference, g, -1.0)
            step.put_gradient(g)
            step.descend_after_step(difference, a, self.preconditions_term)
