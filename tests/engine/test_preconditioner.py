"""Preconditioned WSAM: its term is divided by what the base optimizer's own step is divided by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import AdamW, Spec, by_name, flat, reference_run
from torch import Tensor

import hf_sharpness
from hf_sharpness import WSAM

STEPS = steps_of(classification(48), 4, accumulation=2, epochs=2)
LR, MAX_NORM = 0.01, 0.4
SPEC = Spec("", "wsam", {"rho": 0.2, "mode": "preconditioned", "gamma": 0.7})


class Amsgrad(AdamW):
    """torch's: the largest v so far is corrected by the bias of now."""

    def step(self, w: Tensor, g: Tensor, lr: Any) -> Tensor:
        b1, b2 = self.betas
        self.t += 1
        self.m, self.v = b1 * self.m + (1 - b1) * g, b2 * self.v + (1 - b2) * g**2
        self.largest = torch.maximum(getattr(self, "largest", self.v), self.v)
        return w - lr * self.weight_decay * w - lr * self.m / (1 - b1**self.t) / self.preconditioner()

    def preconditioner(self) -> Tensor:
        return (self.largest / (1 - self.betas[1] ** self.t)).sqrt() + self.eps


class Adam(AdamW):
    """Weight decay is part of the gradient, and so of P."""

    def step(self, w: Tensor, g: Tensor, lr: Any) -> Tensor:
        decay, self.weight_decay = self.weight_decay, 0.0
        w = super().step(w, g + decay * w, lr)
        self.weight_decay = decay
        return w


IMPLEMENTATIONS: dict[str, dict[str, Any]] = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}
IMPLEMENTATIONS["fused"] = {"fused": True}
OPTIONS: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("how", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("ours", "reference", "amsgrad"),
    [(torch.optim.AdamW, AdamW, False), (torch.optim.AdamW, Amsgrad, True), (torch.optim.Adam, Adam, False)],
    ids=["AdamW", "amsgrad", "Adam"],
)
def test_every_form_of_adam_against_float64(ours: Any, reference: Any, amsgrad: bool, how: Any, plain: Any) -> None:
    """Clipped, with a learning rate that changes; eps is large enough to count."""
    model, factors = Net().double(), [1.0 - 0.05 * step for step in range(len(STEPS))]
    optimizer = ours(model.parameters(), lr=LR, amsgrad=amsgrad, **OPTIONS, **how)
    weights = plain(model, STEPS, optimizer, SPEC.ours(model, optimizer), factors, MAX_NORM)
    lrs = [LR * factor for factor in factors]
    records = reference_run(Net(), STEPS, SPEC.reference(), reference(**OPTIONS), lrs, MAX_NORM)
    for now, record in zip(weights, records, strict=True):
        torch.testing.assert_close(now, record.weights, rtol=1e-10, atol=1e-10)
    unpreconditioned = Spec("", "wsam", SPEC.settings | {"mode": "decoupled"}).reference()
    other = reference_run(Net(), STEPS, unpreconditioned, reference(**OPTIONS), lrs, MAX_NORM)
    assert (other[-1].weights - records[-1].weights).norm() > 1e-3


def test_groups_have_their_own_betas_eps_and_rate(plain: Any) -> None:
    """Each half of the model is trained as by an optimizer of its own settings."""
    model = Net().double()
    first, last = [p for n, p in model.named_parameters() if n.startswith("first")], model.last.parameters()
    groups = [{"params": first, "betas": (0.5, 0.7), "eps": 1e-2}, {"params": last, "lr": 0.003}]
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.0)
    weights = plain(model, STEPS, optimizer, SPEC.ours(model, optimizer), max_norm=MAX_NORM)

    start = Net()
    in_first = torch.cat(
        [torch.full((p.numel(),), n.startswith("first"), dtype=torch.bool) for n, p in start.named_parameters()]
    )
    halves = [AdamW(betas=(0.5, 0.7), eps=1e-2), AdamW()]

    class Both:
        def step(self, w: Tensor, g: Tensor, lr: Any) -> Tensor:
            return torch.where(in_first, halves[0].step(w, g, lr), halves[1].step(w, g, lr))

        def preconditioner(self) -> Tensor:
            return torch.where(in_first, halves[0].preconditioner(), halves[1].preconditioner())

    lr = 0.003 + (LR - 0.003) * in_first.double()
    records = reference_run(start, STEPS, SPEC.reference(), Both(), [lr] * len(STEPS), MAX_NORM)  # type: ignore[arg-type]
    torch.testing.assert_close(weights[-1], records[-1].weights, rtol=1e-10, atol=1e-10)


def test_around_sgd_it_is_the_decoupled_mode(plain: Any) -> None:
    """P is 1."""
    runs = []
    for mode in ("decoupled", "preconditioned"):
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        method = Spec("", "wsam", SPEC.settings | {"mode": mode}).ours(model, optimizer)
        runs.append(plain(model, STEPS, optimizer, method)[-1])
    assert torch.equal(*runs)


def test_its_gamma_is_half_by_default() -> None:
    model = Net()
    method = WSAM(model, torch.optim.AdamW(model.parameters()), mode="preconditioned")
    assert method.method.gamma == 0.5


class Own(torch.optim.AdamW):
    """A step of its own."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)


class Renamed(torch.optim.AdamW):
    """AdamW's own step."""


@pytest.mark.parametrize("base", [torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adamax, Own])
def test_another_adaptive_base_is_refused(base: Any) -> None:
    model = Net()
    with pytest.raises(ValueError, match=rf"that of {base.__name__} is not known: use Adam or AdamW .* mode='coupled'"):
        WSAM(model, base(model.parameters()), mode="preconditioned")
    WSAM(model, base(model.parameters()), mode="preconditioned", gamma=0.0)  # the base optimizer itself
    WSAM(model, Renamed(model.parameters()), mode="preconditioned")


@pytest.mark.parametrize("name", ["adafactor", "adamw_bnb_8bit", "galore_adamw", "adagrad"])
def test_among_the_arguments_too(name: str, tmp_path: Any) -> None:
    def made(**options: Any) -> Any:
        options = {"optim": "wsam", "wsam_mode": "preconditioned"} | options
        return hf_sharpness.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)

    with pytest.raises(ValueError, match=rf"base_optim='{name}' is not known.*wsam_mode='coupled'"):
        made(base_optim=name)
    for known in ("adamw_torch", "adamw_torch_fused", "sgd"):
        made(base_optim=known)


@pytest.mark.parametrize("spec", by_name("wsam-preconditioned", "wsam-preconditioned-k2"), ids=str)
def test_a_parameter_that_joins_late_has_steps_of_its_own(spec: Spec) -> None:
    """The correction for bias counts each parameter's own steps."""
    model = Net().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    method = spec.ours(model, optimizer)
    for number, (batch, _) in enumerate(STEPS[:4]):
        model.first.requires_grad_(number >= 2)

        def closure(batch: Any = batch) -> Tensor:
            loss = model(**batch)["loss"]
            loss.backward()
            return loss

        method.backward(closure)
        before = flat(model)
        a = spec.settings["gamma"] / (1 - spec.settings["gamma"])
        difference = [t.clone() for t in method.engine.term.pending.terms.values()]
        params = list(method.engine.term.pending.terms)
        weights = [p.detach().clone() for p in params]
        optimizer.step()
        for p, d, w in zip(params, difference, weights, strict=True):
            state = optimizer.state[p]
            t = float(state["step"])
            P = (state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8
            step = state["exp_avg"] / (1 - 0.9**t) / P
            torch.testing.assert_close(p.detach(), w - LR * (step + a * d / P), rtol=1e-12, atol=1e-12)
        assert not torch.equal(flat(model), before)
        optimizer.zero_grad()
