"""Decoupled WSAM and what happens to the gradient between the backward pass and the optimizer's step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from edits_by_hand import EDITS, EXACT, GAMMA, LR, RHO, STEPS, Edit, by_hand, mask_rows, mask_then_clip, ours, rows
from models import Net, Record, accumulate
from reference import flat
from torch import Tensor, nn

from hf_sharpness import WSAM
from hf_sharpness.engine import Engine


@pytest.mark.parametrize("name", EDITS)
def test_the_term_follows_the_edit(name: str) -> None:
    edit, factors = EDITS[name]
    torch.testing.assert_close(ours(Net().double(), edit), by_hand(Net().double(), factors), **EXACT)


@pytest.mark.parametrize("registered", ["before", "after"])
def test_hooks_of_the_users_on_the_optimizer(registered: str) -> None:
    """One before the step changes the gradient, and the term with it; one after it finds the weights with the term."""
    model = Net().double()
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=LR)
    seen: list[Tensor] = []

    def register() -> None:
        optimizer.register_step_pre_hook(lambda *args: mask_rows(params))
        optimizer.register_step_post_hook(lambda *args: seen.append(flat(model)))

    if registered == "before":
        register()
    method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA, mode="decoupled")
    if registered == "after":
        register()
    for (batch,) in STEPS:
        method.backward(lambda batch=batch: accumulate(model, batch, 1))
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(seen[-1], flat(model))
    torch.testing.assert_close(flat(model), by_hand(Net().double(), rows), **EXACT)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW], ids=lambda c: c.__name__)
def test_masked_rows_do_not_move_at_all(base: Any) -> None:
    """Also with a mask whose rows have next to no share in the gradient's norm, and where norms are clipped then."""
    model = Net().double()
    with torch.no_grad():
        model.first.weight[:5] *= 1e-9
    before = model.first.weight[:5].clone()
    optimizer = base(model.parameters(), lr=0.01, weight_decay=0.0)
    method = WSAM(model, optimizer, mode="decoupled")
    for (batch,) in STEPS:
        method.backward(lambda batch=batch: accumulate(model, batch, 1))
        mask_then_clip(list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model.first.weight[:5], before)


def test_a_parameter_that_only_the_replay_reaches_is_clipped_as_the_others() -> None:
    """Its gradient was zero and stays zero: where all was multiplied by one number, its term is too."""

    class Late(Net):
        record = Record()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            self.record.forwards += 1
            logits = self.last(self.features(x)) + (self.extra(x) if self.record.forwards % 2 == 0 else 0)
            return {"loss": nn.functional.cross_entropy(logits, labels)}

    runs = []
    for clip in (1.0, 0.25):
        model = Late().double()
        torch.manual_seed(0)
        model.extra = nn.Linear(6, 3).double()
        start = flat(model.extra)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = WSAM(model, optimizer, mode="decoupled")
        method.backward(lambda model=model: accumulate(model, STEPS[0][0], 1))
        for p in model.parameters():
            p.grad.mul_(clip)
        optimizer.step()
        runs.append(flat(model.extra) - start)
    assert runs[0].norm() > 1e-6
    torch.testing.assert_close(runs[1], 0.25 * runs[0])


def noise(params: list[nn.Parameter]) -> None:
    torch.manual_seed(0)
    for p in params:
        p.grad.add_(torch.randn_like(p), alpha=0.1)


def sign(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad.sign_()


def from_zero(params: list[nn.Parameter]) -> None:
    params[0].grad[0] = 0
    params[1].grad.fill_(1e-3)


@pytest.mark.parametrize("edit", [noise, sign, from_zero])
def test_what_cannot_be_followed_is_refused_before_the_weights_move(edit: Edit) -> None:
    model = Net().double()
    before = flat(model)
    with pytest.raises(RuntimeError, match="coupled mode"):
        ours(model, edit)
    assert torch.equal(flat(model), before)


def test_on_an_accelerator_it_is_refused_one_step_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the device; until then no element's term is more than ten times what it was."""
    monkeypatch.setattr(Engine, "on_cpu", False)
    model = Net().double()
    with pytest.raises(RuntimeError, match="coupled mode"):
        ours(model, noise)
    assert flat(model).isfinite().all()


@pytest.mark.parametrize("on_cpu", [True, False], ids=["on the host", "on an accelerator"])
def test_a_gradient_that_is_not_finite_is_no_edit(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping makes its zeros NaN, as in a step in which fp16 overflows: nobody changed it in a strange way."""
    monkeypatch.setattr(Engine, "on_cpu", on_cpu)
    model, passes = Net().double(), Record()
    with torch.no_grad():
        model.first.weight[0], model.first.bias[0] = 0.0, 0.0  # a feature that is zero: no gradient in the last layer
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA, mode="decoupled", check="off")

    def overflow(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        passes.forwards += 1
        return output * (float("inf") if passes.forwards == 2 else 1.0)  # in the replay

    model.last.register_forward_hook(overflow)
    before = flat(model)
    method.backward(lambda: accumulate(model, STEPS[0][0], 1))
    assert (model.last.weight.grad == 0).any()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert all(p.grad.isnan().all() for p in model.parameters())
    optimizer.step()
    optimizer.zero_grad()
    nn.utils.vector_to_parameters(before, model.parameters())
    method.backward(lambda: accumulate(model, STEPS[0][0], 1))
    optimizer.step()
    assert flat(model).isfinite().all()


def test_zero_grad_before_the_step(plain: Any) -> None:
    """The step has nothing to do, and the next one is an ordinary one."""
    runs = []
    for with_empty_step in (False, True):
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA)
        if with_empty_step:
            before = flat(model)
            method.backward(lambda model=model: accumulate(model, STEPS[0][0], 1))
            optimizer.zero_grad()
            optimizer.step()
            assert torch.equal(flat(model), before)
        runs.append(plain(model, STEPS, optimizer, method)[-1])
    assert torch.equal(*runs)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_is_left_out(set_to_none: bool, plain: Any) -> None:
    """backward, zero_grad and no step: nothing of it is left for the next one."""
    runs = []
    for left_out in (False, True):
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA)
        if left_out:
            method.backward(lambda model=model: accumulate(model, STEPS[1][0], 1))
            optimizer.zero_grad(set_to_none=set_to_none)
        runs.append(plain(model, STEPS, optimizer, method)[-1])
    torch.testing.assert_close(*runs, **EXACT)
