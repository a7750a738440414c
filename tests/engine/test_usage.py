"""Training loops of one's own that call `backward` in other ways than they should: exact, or told so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models import Batch, Net, accumulate, classification, steps_of
from reference import BASES, Spec, by_name, flat, reference_run
from torch import Tensor, nn
from torch.nn import functional as F

from hf_sharpness import SAM, WSAM, XSAM

DATA = steps_of(classification(32), 8)
EXACT = {"rtol": 1e-11, "atol": 1e-12}
four_methods = pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)


def scoped(name: str, scope: str) -> Spec:
    (spec,) = by_name(name)
    return Spec(name, spec.method, spec.settings | {"scope": scope})


@pytest.mark.parametrize("name", ["sam", "wsam-coupled", "wsam-decoupled"])
def test_once_for_each_micro_batch_is_scope_micro_batch(name: str) -> None:
    """The calls before one step add up, gradients and terms, with a warning where another scope was meant."""
    base, steps = BASES[0], steps_of(classification(64), 8, accumulation=4)
    spec = scoped(name, "micro_batch")
    reference = reference_run(Net().double(), steps, spec.reference(), base.reference(), [base.lr] * len(steps))
    model = Net().double()
    optimizer = base.torch(model.parameters())
    method = scoped(name, "global").ours(model, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            for batch in step:
                method.backward(lambda batch=batch: accumulate(model, batch, 4))
            optimizer.step()
            optimizer.zero_grad()
    assert [str(w.message)[:34] for w in caught] == ["method.backward was called again be"[:34]]
    torch.testing.assert_close(flat(model), reference[-1].weights, **EXACT)


@pytest.mark.parametrize("name", ["sam", "wsam-decoupled"])
def test_no_warning_where_nothing_adds_up(name: str) -> None:
    """In scope `micro_batch`, after an ordinary step, and after a step that is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scope in ("micro_batch", "global"):
            for set_to_none in (True, False):
                model = Net().double()
                optimizer = BASES[0].torch(model.parameters())
                method = scoped(name, scope).ours(model, optimizer)
                for number, (batch,) in enumerate(DATA):
                    method.backward(lambda model=model, batch=batch: accumulate(model, batch, 1))
                    if scope == "global" and number != 1:
                        optimizer.step()
                    if scope == "global" or number % 2:
                        optimizer.zero_grad(set_to_none=set_to_none)


def clearing(model: Net, batch: Batch, set_to_none: bool) -> Any:
    """A closure that begins as a loop without a closure does."""

    def closure() -> Tensor:
        model.zero_grad(set_to_none=set_to_none)
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("base", BASES, ids=str)
@four_methods
def test_a_closure_that_begins_with_zero_grad(spec: Spec, base: Any, set_to_none: bool) -> None:
    """It does no harm: not to what waits for coupled WSAM's second gradient, nor in XSAM's search."""
    model = Net().double()
    lrs = [base.lr] * len(DATA)
    reference = reference_run(model, DATA, spec.reference(), base.reference(), lrs, epoch_starts=(0,))
    optimizer = base.torch(model.parameters())
    method = spec.ours(model, optimizer)
    for (batch,) in DATA:
        method.backward(clearing(model, batch, set_to_none))
        assert method.metrics["ascent_grad_norm"] > 0
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    torch.testing.assert_close(flat(model), reference[-1].weights, **EXACT)


@pytest.mark.parametrize("set_to_none", [True, False])
@four_methods
def test_zero_grad_in_a_list_of_closures_is_refused(spec: Spec, set_to_none: bool) -> None:
    """Only the last one's gradient would be left."""
    model = Net().double()
    before = flat(model)
    method = spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="zero_grad"):
        method.backward([clearing(model, batch, set_to_none) for (batch,) in DATA])
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("as_list", [False, True])
@four_methods
def test_a_closure_without_backward_is_refused(spec: Spec, as_list: bool, number: int) -> None:
    """In the first step and in a later one that is not watched; the next call is an ordinary one."""
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = spec.ours(model, optimizer)
    batch = DATA[0][0]
    for _ in range(number - 1):
        method.backward(lambda: accumulate(model, batch, 1))
        optimizer.step()
        optimizer.zero_grad()
    forgets = lambda: model(**batch)["loss"]  # noqa: E731
    with pytest.raises(RuntimeError, match=r"loss.backward\(\)"):
        method.backward([forgets, forgets] if as_list else forgets)
    method.backward(lambda: accumulate(model, batch, 1))
    assert model.first.weight.grad.norm() > 0


def test_what_is_no_function_is_refused_in_words_of_its_own() -> None:
    model = Net().double()
    method = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loss = model(**DATA[0][0])["loss"]
    with pytest.raises(TypeError, match=r"closure=a Tensor is not valid.*\n.*def closure"):
        method.backward(loss)
    with pytest.raises(TypeError, match=r"a Tensor"):
        method.backward([loss, loss])
    with pytest.raises(TypeError, match=r"a NoneType"):
        method.backward(None)
    with pytest.raises(ValueError, match=r"closure=\[\]"):
        method.backward([])


LOSSES = {
    "cross entropy": lambda logits, y: F.cross_entropy(logits, y),
    "mean of a sum": lambda logits, y: F.cross_entropy(logits, y, reduction="none").mean() + logits.square().mean(),
    "squares": lambda logits, y: 1.0 * F.mse_loss(logits, F.one_hot(y, 3).to(logits)),
}


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_list_of_losses_that_are_each_about_the_whole_warns(name: str, divided: bool) -> None:
    model = Net().double()
    method = WSAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def closure_for(batch: Batch) -> Any:
        def closure() -> Tensor:
            loss = LOSSES[name](model(batch["x"])["logits"], batch["labels"])
            if divided:
                loss = loss / len(DATA)
            loss.backward()
            return loss

        return closure

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.backward([closure_for(batch) for (batch,) in DATA])
    assert [str(w.message)[:24] for w in caught] == ([] if divided else ["each of the 4 closures r"])


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_scaler_does_not_hide_it(scale: float) -> None:
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    method = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler)
    data = steps_of(classification(16, torch.float32), 8)

    def closure_for(batch: Batch, factor: float) -> Any:
        def closure() -> Tensor:
            loss = model(**batch)["loss"]
            scaler.scale(loss * factor).backward()
            return loss

        return closure

    with pytest.warns(UserWarning, match="each of the 2 closures"):
        method.backward([closure_for(batch, 1.0) for (batch,) in data])
    for p in model.parameters():
        p.grad = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.backward([closure_for(batch, 0.5) for (batch,) in data])


def searches(method: XSAM, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: Any, steps: int) -> list[int]:
    found = []
    for number in range(steps):
        if number in epochs:
            method.start_epoch()
        if method.method.search_due:
            found.append(number)
        method.backward(lambda: accumulate(model, DATA[0][0], 1))
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_xsam_searches_again_in_a_loop_that_tells_no_epochs() -> None:
    """Every 100 steps; by epochs once the loop tells of one, also after a resume."""
    runs = []
    for epochs in ((), (0, 30, 60)):
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        method = XSAM(model, optimizer, alpha_points=2)
        runs.append(searches(method, model, optimizer, epochs, 102))
    assert runs == [[0, 100], [0, 30, 60]]
    resumed = XSAM(model, optimizer, alpha_points=2)
    resumed.load_state_dict(method.state_dict())
    assert searches(resumed, model, optimizer, (5,), 100) == [5]
