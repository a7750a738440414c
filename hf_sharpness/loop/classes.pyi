# Written by scripts/stubs.py from the methods: change them instead.

from typing import Any

import torch
from torch import nn

from .. import methods
from . import SharpnessAware

__all__ = ["SAM", "WSAM", "XSAM"]

class SAM(SharpnessAware):
    """Sharpness-aware minimisation: descend with the gradient found a step of length rho up the slope.

        w_0 = w,  w_{j+1} = w_j + (rho/k) g_j / ||g_j||,  g_j = grad L_B(w_j);   BaseOpt(w, grad = g_k)

    ASAM measures the step relative to the weights: the direction is ``T^2 g / ||T g||`` with ``T = |w|``.

    Args:
        model: the model that the closure calls.
        optimizer: the base optimizer.
        rho: Total length of the ascent step (the radius of the neighbourhood). .05 in the paper (CIFAR-10 and
            ImageNet), .15 and .2 in later ones (CIFAR from scratch, SGD); ASAM wants about 10 times as much (.5 -
            2). Default: 0.05.
        adaptive: Scale the ascent step by the size of each weight (ASAM, arXiv 2102.11600). Default: False.
        steps: Number of ascent steps k, each of length rho/k; every one costs a forward and a backward pass.
            Default: 1.
        scope: Whose gradient makes the perturbation: `global`: the gradient of the whole effective batch, averaged
            over ranks; `device`: each rank's own accumulated gradient (m-sharpness, SAM's own setting on several
            devices); `micro_batch`: every micro-batch alone, on every rank. Default: global.
        check: What to do where a further pass at the same weights does not repeat the first: `warn`, `error` or
            `off`. It is looked at in steps 1, 10, 100, ..., in the first of every epoch and in the first after a
            resume, which costs one more pass there. Default: warn.
        start: When sharpness begins: a fraction of the training's optimizer steps, which are the base optimizer's
            own before (.5: the second half is sharpness-aware); or `decay`: at the step from which the learning
            rate falls to the end (`warmup_stable_decay` and the like). Default: 0.0.
        stop: When sharpness ends: a fraction of the training's optimizer steps, the base optimizer's own from
            there. Default: 1.0.
        rho_schedule: The length of the perturbation from step to step: `constant`: rho as it is given; `lr`: rho
            times the learning rate over its peak; `linear`: up in equal steps over the first tenth of the
            sharpness-aware steps. Default: constant.
        fraction: The part f of each batch that the further pass goes over: its first micro-batches, for 1 + f
            passes a step, or without gradient accumulation its first examples, for 1 + 2f. Default: 1.0.
        target_modules: Perturb the parameters of these modules alone: names or globs between commas, or the words
            `norm` (normalisation layers) and `head` (what makes the logits). All others take the gradient found
            there too.
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one. Default None.
        total_steps: how many optimizer steps the training makes, each with one ``backward``, for a method or an option
            that goes by its progress. Default None.
        scheduler: the learning rate's scheduler, for ``start="decay"``. Default None.
    """
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        steps: int = 1,
        scope: str = "global",
        check: str = "warn",
        start: float | str = 0.0,
        stop: float = 1.0,
        rho_schedule: str = "constant",
        fraction: float = 1.0,
        target_modules: str | None = None,
        scaler: Any = None,
        total_steps: int | None = None,
        scheduler: Any = None,
    ) -> None: ...
    @property
    def method(self) -> methods.SAM: ...

class WSAM(SharpnessAware):
    """Minimise ``L(w) + a [max_{||d||<=rho} L(w+d) - L(w)]`` with ``a = gamma / (1 - gamma)``.

        COUPLED         h = (1 - a) g + a g_s;  BaseOpt(w, grad = h)
        DECOUPLED       BaseOpt(w, grad = g);   w <- w - lr a (g_s - g)
        PRECONDITIONED  BaseOpt(w, grad = g);   w <- w - lr a (g_s - g) / P

    P is what the base optimizer divides its own step by: Adam's ``sqrt(v_hat) + eps`` after this step, 1 for SGD. The
    first two modes are the paper's; the third is this package's, and gives the term the units of an Adam step.

    gamma 0 is the base optimizer, gamma 1/2 coupled is SAM. The modes weigh sharpness differently (with momentum mu
    the decoupled weight is (1 - mu) a), hence a default gamma for each.

    Args:
        model: the model that the closure calls.
        optimizer: the base optimizer.
        rho: Total length of the ascent step (the radius of the neighbourhood). .05 in the paper (CIFAR-10 and
            ImageNet), .15 and .2 in later ones (CIFAR from scratch, SGD); ASAM wants about 10 times as much (.5 -
            2). Default: 0.05.
        adaptive: Scale the ascent step by the size of each weight (ASAM, arXiv 2102.11600). Default: False.
        steps: Number of ascent steps k, each of length rho/k; every one costs a forward and a backward pass.
            Default: 1.
        mode: `decoupled` (the authors' weight decouple: the sharpness term is added to the weights after the base
            optimizer's step), `preconditioned` (the same, divided by Adam's or AdamW's own sqrt(v_hat) + eps),
            `coupled` (it is part of the gradient), or `auto`: decoupled for SGD with momentum, coupled for SGD
            without and for an adaptive base (Adam and the like). Default: auto.
        gamma: Weight of sharpness, 0 <= gamma < 1; 0 is the base optimizer. Default: .9 decoupled (the authors'
            value; the paper recommends .8 - .95), .6 coupled, .5 preconditioned. One mode's gamma is not the
            other's.
        scope: Whose gradient makes the perturbation: `global`: the gradient of the whole effective batch, averaged
            over ranks; `device`: each rank's own accumulated gradient (m-sharpness, SAM's own setting on several
            devices); `micro_batch`: every micro-batch alone, on every rank. Default: global.
        check: What to do where a further pass at the same weights does not repeat the first: `warn`, `error` or
            `off`. It is looked at in steps 1, 10, 100, ..., in the first of every epoch and in the first after a
            resume, which costs one more pass there. Default: warn.
        start: When sharpness begins: a fraction of the training's optimizer steps, which are the base optimizer's
            own before (.5: the second half is sharpness-aware); or `decay`: at the step from which the learning
            rate falls to the end (`warmup_stable_decay` and the like). Default: 0.0.
        stop: When sharpness ends: a fraction of the training's optimizer steps, the base optimizer's own from
            there. Default: 1.0.
        rho_schedule: The length of the perturbation from step to step: `constant`: rho as it is given; `lr`: rho
            times the learning rate over its peak; `linear`: up in equal steps over the first tenth of the
            sharpness-aware steps. Default: constant.
        fraction: The part f of each batch that the further pass goes over: its first micro-batches, for 1 + f
            passes a step, or without gradient accumulation its first examples, for 1 + 2f. Default: 1.0.
        target_modules: Perturb the parameters of these modules alone: names or globs between commas, or the words
            `norm` (normalisation layers) and `head` (what makes the logits). All others take the gradient found
            there too.
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one. Default None.
        total_steps: how many optimizer steps the training makes, each with one ``backward``, for a method or an option
            that goes by its progress. Default None.
        scheduler: the learning rate's scheduler, for ``start="decay"``. Default None.
    """
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        steps: int = 1,
        mode: str = "auto",
        gamma: float | None = None,
        scope: str = "global",
        check: str = "warn",
        start: float | str = 0.0,
        stop: float = 1.0,
        rho_schedule: str = "constant",
        fraction: float = 1.0,
        target_modules: str | None = None,
        scaler: Any = None,
        total_steps: int | None = None,
        scheduler: Any = None,
    ) -> None: ...
    @property
    def method(self) -> methods.WSAM: ...

class XSAM(SharpnessAware):
    """Descend along the direction of the plane (displacement, gradient there) that points to the highest loss.

        v0 = (w_k - w_0)/||w_k - w_0||,  v1 = g_k/||g_k||,  psi = angle(v0, v1)
        v(alpha) = sin((1-alpha) psi)/sin(psi) v0 + sin(alpha psi)/sin(psi) v1
        alpha* = argmax over the grid of L_B(w_0 + rho_max v(alpha))          (now and then)
        BaseOpt(w_0, grad = ||g_k|| v(alpha*))

    alpha 1 is SAM.

    Args:
        model: the model that the closure calls.
        optimizer: the base optimizer.
        rho: Total length of the ascent step (the radius of the neighbourhood). .05 in the paper (CIFAR-10 and
            ImageNet), .15 and .2 in later ones (CIFAR from scratch, SGD); ASAM wants about 10 times as much (.5 -
            2). Default: 0.05.
        adaptive: Scale the ascent step by the size of each weight (ASAM, arXiv 2102.11600). Default: False.
        steps: Number of ascent steps k, each of length rho/k; every one costs a forward and a backward pass.
            Default: 1.
        rho_max: Distance at which the loss is probed to choose alpha. Default: 2 rho (the authors' choice on
            CIFAR-100).
        alpha: Fix alpha instead of searching for it (1 is SAM).
        alpha_max: Upper end of the grid that is searched for alpha; the lower end is 0. Default: 2.0.
        alpha_points: Number of points of that grid. Default: 21.
        search: How the grid is searched: `coarse` probes at most 8 of its points, closing in on the highest loss;
            `grid` probes all of them, as the authors do. Default: coarse.
        refresh: When alpha is searched anew: `epoch` (on the first step of every epoch) or an integer N (every N
            optimizer steps); always on the first step. Steps are the sharpness-aware ones. Default: epoch once
            start_epoch() has been called, 100 before.
        scope: Whose gradient makes the perturbation: `global`: the gradient of the whole effective batch, averaged
            over ranks; `device`: each rank's own accumulated gradient (m-sharpness, SAM's own setting on several
            devices); `micro_batch`: every micro-batch alone, on every rank. Default: global.
        check: What to do where a further pass at the same weights does not repeat the first: `warn`, `error` or
            `off`. It is looked at in steps 1, 10, 100, ..., in the first of every epoch and in the first after a
            resume, which costs one more pass there. Default: warn.
        start: When sharpness begins: a fraction of the training's optimizer steps, which are the base optimizer's
            own before (.5: the second half is sharpness-aware); or `decay`: at the step from which the learning
            rate falls to the end (`warmup_stable_decay` and the like). Default: 0.0.
        stop: When sharpness ends: a fraction of the training's optimizer steps, the base optimizer's own from
            there. Default: 1.0.
        rho_schedule: The length of the perturbation from step to step: `constant`: rho as it is given; `lr`: rho
            times the learning rate over its peak; `linear`: up in equal steps over the first tenth of the
            sharpness-aware steps. Default: constant.
        fraction: The part f of each batch that the further pass goes over: its first micro-batches, for 1 + f
            passes a step, or without gradient accumulation its first examples, for 1 + 2f. Default: 1.0.
        target_modules: Perturb the parameters of these modules alone: names or globs between commas, or the words
            `norm` (normalisation layers) and `head` (what makes the logits). All others take the gradient found
            there too.
        scaler: the ``torch.amp.GradScaler``, if the closure scales its loss with one. Default None.
        total_steps: how many optimizer steps the training makes, each with one ``backward``, for a method or an option
            that goes by its progress. Default None.
        scheduler: the learning rate's scheduler, for ``start="decay"``. Default None.
    """
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        steps: int = 1,
        rho_max: float | None = None,
        alpha: float | None = None,
        alpha_max: float = 2.0,
        alpha_points: int = 21,
        search: str = "coarse",
        refresh: int | str | None = None,
        scope: str = "global",
        check: str = "warn",
        start: float | str = 0.0,
        stop: float = 1.0,
        rho_schedule: str = "constant",
        fraction: float = 1.0,
        target_modules: str | None = None,
        scaler: Any = None,
        total_steps: int | None = None,
        scheduler: Any = None,
    ) -> None: ...
    @property
    def method(self) -> methods.XSAM: ...
    @property
    def alpha(self) -> float | None: ...
