"""On an accelerator a step relies on it that the gradient was multiplied by one number, once that was so."""

from __future__ import annotations

import warnings

import pytest
import torch
from edits_by_hand import EDITS, EXACT, GAMMA, LR, RHO, STEPS, by_hand, mask_rows, ours, rows
from models import Net, accumulate
from reference import flat
from torch import Tensor, nn

from hf_sharpness import WSAM, vectors
from hf_sharpness.engine import Engine, after_step
from hf_sharpness.engine.edits import follow_one_factor_, is_no_multiple
from hf_sharpness.engine.one_factor import OneFactor


@pytest.fixture(autouse=True)
def on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "on_cpu", False)


@pytest.mark.parametrize("name", EDITS)
def test_the_term_follows_the_edit(name: str) -> None:
    """One that is there from the first step on."""
    edit, factors = EDITS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(ours(Net().double(), edit), by_hand(Net().double(), factors), **EXACT)


def test_the_first_two_steps_go_through_every_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step finds counts from the step after the next on, however fast the device is. All are exact."""
    by_element: list[int] = []
    follow = after_step.follow_
    monkeypatch.setattr(
        after_step, "follow_", lambda *args, **kwargs: (by_element.append(1), follow(*args, **kwargs))[1]
    )

    def halved(params: list[nn.Parameter]) -> None:
        for p in params:
            p.grad.mul_(0.5)

    made = ours(Net().double(), halved, begin=4)
    assert len(by_element) == 2
    torch.testing.assert_close(made, by_hand(Net().double(), lambda i, g: torch.full_like(g, 0.5), begin=4), **EXACT)


@pytest.mark.parametrize("through_data", [False, True])
def test_an_edit_that_begins_late_costs_two_terms_and_is_told(through_data: bool) -> None:
    def edit(params: list[nn.Parameter]) -> None:
        if through_data:
            params[0].grad.data[:5] = 0
        else:
            mask_rows(params)

    with pytest.warns(UserWarning, match="left out there, in two steps at most"):
        made = ours(Net().double(), edit, begin=4)
    torch.testing.assert_close(made, by_hand(Net().double(), rows, begin=4, left_out=(4, 5)), **EXACT)


@pytest.mark.parametrize("masked", [False, True])
def test_an_edit_in_the_last_step_is_told_as_the_training_ends(masked: bool) -> None:
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA, mode="decoupled")
    for number, (batch,) in enumerate(STEPS[:4], start=1):
        method.backward(lambda batch=batch: accumulate(model, batch, 1))
        if masked and number == 4:
            mask_rows(list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        method.engine.close()
    assert ["left out there" in str(warning.message) for warning in told] == [True] * masked


def test_a_mask_of_next_to_no_share_is_seen() -> None:
    """Element by element, not by the norm."""
    model = Net().double()
    with torch.no_grad():
        model.first.weight[:5] *= 1e-9
    before = model.first.weight[:5].clone()
    ours(model, mask_rows)
    assert torch.equal(model.first.weight[:5], before)


def test_several_calls_before_a_step() -> None:
    """The term of an earlier call is changed as its gradient was, here and on the host."""
    runs = []
    for on_cpu in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "on_cpu", on_cpu)
            model = Net().double()
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            method = WSAM(model, optimizer, rho=RHO, gamma=GAMMA, mode="decoupled")
            for number in range(0, len(STEPS), 2):
                for (batch,) in STEPS[number : number + 2]:
                    method.backward(lambda batch=batch, model=model: accumulate(model, batch, 1))
                    for p in model.parameters():
                        p.grad.mul_(0.5)
                optimizer.step()
                optimizer.zero_grad()
            runs.append(flat(model))
    torch.testing.assert_close(*runs, **EXACT)


@pytest.mark.parametrize(
    ("now", "is_other"),
    [
        ([1.0, -2.0, 0.0], False),
        ([0.25, -0.5, 0.0], False),
        ([0.0, 0.0, 0.0], False),
        ([float("nan"), -2.0, float("nan")], False),
        ([float("inf"), -2.0, 0.0], False),
        ([-1.0, 2.0, 0.0], True),
        ([1.0, -2.0, 1e-9], True),
        ([1.0, -2.001, 0.0], True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_a_multiple(now: list[float], is_other: bool, dtype: torch.dtype) -> None:
    before = torch.tensor([1.0, -2.0, 0.0], dtype=dtype)
    became = torch.tensor(now, dtype=dtype)
    factor: Tensor = became.norm() / before.norm()
    if (became[0] < 0).item():
        factor = -factor
    assert is_no_multiple([before], [became], factor, became.norm()).item() is is_other


def test_a_gradient_that_was_no_number_before_is_no_edit() -> None:
    """Its training is lost anyway; nothing else is to be blamed for it."""
    gradient = [torch.tensor([float("nan"), 1.0])]
    norms = [torch.tensor([1.0, 1.0])]
    found = follow_one_factor_(norms, [gradient[0].clone()], gradient, vectors.norm, default=1.0)
    assert not found[1].item()


def test_what_was_found_counts_from_the_step_after_the_next_and_does_not_pile_up() -> None:
    found, relied = OneFactor(), []
    for not_one_factor in [False] * 5 + [True] + [False] * 5:
        relied.append(found.is_expected())
        found.note(torch.tensor(not_one_factor), relied=False)
        assert len(found.found) <= 2
    assert relied == [False] * 2 + [True] * 5 + [False] * 4
    assert found.was_not_one_factor


def test_once_it_was_otherwise_no_step_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    look = after_step.is_no_multiple
    monkeypatch.setattr(after_step, "is_no_multiple", lambda *args: (looked.append(1), look(*args))[1])
    ours(Net().double(), mask_rows)
    assert len(looked) == 2
