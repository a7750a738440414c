"""On an accelerator torch's counters tell what happened to the gradient, once they have been right."""

from __future__ import annotations

import pytest
import torch
from edits_by_hand import EDITS, EXACT, GAMMA, LR, RHO, STEPS, Edit, by_hand, mask_rows, ours, rows
from models import Net, accumulate
from reference import flat
from torch import Tensor, nn

from hf_sharpness import WSAM
from hf_sharpness.engine import Engine


def uncounted(edit: Edit) -> Edit:
    """The same through ``.data``, which torch does not count."""

    def through_data(params: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in params]
        for p in params:
            p.grad = p.grad.data.clone()
        edit(params)
        for p, gradient in zip(params, gradients, strict=True):
            gradient.data.copy_(p.grad)
            p.grad = gradient

    return through_data


COUNTED = [name for name in EDITS if name != "none"]


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "through .data"])
@pytest.mark.parametrize("name", COUNTED)
def test_the_term_follows_the_edit_on_an_accelerator(name: str, counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read there; where torch's counters have been right, they are believed."""
    monkeypatch.setattr(Engine, "on_cpu", False)
    edit, factors = EDITS[name]
    made = ours(Net().double(), edit if counted else uncounted(edit))
    torch.testing.assert_close(made, by_hand(Net().double(), factors), **EXACT)


def test_a_mask_before_a_known_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters account for the clipping alone."""
    monkeypatch.setattr(Engine, "on_cpu", False)
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA, mode="decoupled")
    for number, (batch,) in enumerate(STEPS):
        method.backward(lambda batch=batch: accumulate(model, batch, 1))
        if number % 2:
            mask_rows(list(model.parameters()))
        with method.engine.term.multiplied():
            for p in model.parameters():
                p.grad.mul_(0.5)
        optimizer.step()
        optimizer.zero_grad()
    calls = iter(range(4 * len(STEPS)))  # once for each of four parameters in every step

    def factors(index: int, g: Tensor) -> Tensor:
        return 0.5 * (rows(index, g) if next(calls) // 4 % 2 else torch.ones_like(g))

    torch.testing.assert_close(flat(model), by_hand(Net().double(), factors), **EXACT)


def test_an_uncounted_edit_that_begins_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In step 10, or one that is measured; until then the term was not followed."""
    monkeypatch.setattr(Engine, "on_cpu", False)
    edit, model = uncounted(mask_rows), Net().double()
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=LR)
    method = WSAM(model, optimizer, mode="decoupled")
    moved = []
    for step in range(1, 13):
        method.backward(lambda: accumulate(model, STEPS[0][0], 1))
        if step >= 4:
            edit(params)
        before = params[0][:5].clone()
        optimizer.step()
        optimizer.zero_grad()
        moved.append(not torch.equal(params[0][:5], before))
        if step == 10:
            with pytest.warns(UserWarning, match=r"through `\.data`, say"):
                method.engine.term.trust.update()
    assert moved == [True] * 9 + [False] * 3
