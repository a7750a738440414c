"""What a method of one's own keeps from step to step: copies, in full precision, nothing of failed steps, resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_in_loop import STEPS, Loop, long, run_backward, seen
from models import Net, Saboteur, accumulate
from reference import flat
from torch import Tensor, nn

from hf_sharpness.methods import Step

pytestmark = pytest.mark.filterwarnings("ignore:method.backward was called again")  # nothing is trained here


def test_kept_vectors_come_back_as_copies() -> None:
    def run(step: Step) -> None:
        known = step.kept("one")
        assert (known is not None) == step.has_kept("one") == bool(history)
        assert not step.has_kept("other")
        if known is not None:
            assert torch.equal(long(known), history[-1])
            known[0].zero_()
        step.keep("one", step.gradient())
        assert step.has_kept("one")
        history.append(long(step.gradient()))

    history: list[Tensor] = []
    loop = Loop(run)
    for number in range(3):
        loop.method.backward(lambda n=number: accumulate(loop.model, STEPS[n][0], 1))
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1e-3)  # in place: not in what is kept
        loop.optimizer.step()
        loop.optimizer.zero_grad(set_to_none=False)


def test_keeping_what_was_not_declared_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'own' keeps 'third'.*`keeps`"):
        seen(lambda step: step.keep("third", step.gradient()))
    with pytest.raises(ValueError, match="'third'"):
        seen(lambda step: step.kept("third"))


def test_a_parameter_without_a_gradient_keeps_what_it_had() -> None:
    def run(step: Step) -> None:
        kept.append(None if step.kept("one") is None else [float(t[0]) for t in step.kept("one")])
        step.keep("one", [torch.full_like(t, value[0]) for t in step.gradient()])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    kept: list[Any] = []
    model = Two()
    loop = Loop(run, model=model)
    value = [0.0]
    for number, used in enumerate([[model.a], [model.a, model.b], [model.b], [model.a, model.b]], start=1):
        value[0] = float(number)
        loop.method.backward(lambda used=used: run_backward(sum(p.sum() for p in used)))
        loop.optimizer.zero_grad()
    assert kept == [None, [1.0, 0.0], [2.0], [2.0, 3.0]]


def test_what_is_kept_is_free_of_the_loss_scale() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def run(step: Step) -> None:
        if step.has_kept("one"):
            torch.testing.assert_close(long(step.kept("one")), 0.5 * long(step.gradient()), rtol=1e-6, atol=1e-9)
        step.keep("one", [t.clone() for t in step.gradient()])

    loop = Loop(run, model=Net(), scaler=scaler)
    batch = {"x": STEPS[0][0]["x"].float(), "labels": STEPS[0][0]["labels"]}
    for scale in (1.0, 2.0):  # the second time the same loss, twice, at half the scale

        def closure(scale: float = scale) -> Tensor:
            loss = loop.model(**batch)["loss"] * scale
            scaler.scale(loss).backward()
            return loss.detach()

        loop.method.backward(closure)
        loop.optimizer.zero_grad()
        scaler.scale(torch.zeros(()))
        scaler.update(512.0)


def test_what_bfloat16_weights_keep_is_float32() -> None:
    """An average moves by less than bfloat16 can tell."""

    def run(step: Step) -> None:
        average = step.kept("one") or [torch.ones(t.shape) for t in step.gradient()]
        assert average[0].dtype == torch.float32
        step.keep("one", [t * 0.999 for t in average])
        values.append(float(average[0].flatten()[0]))

    values: list[float] = []
    model = nn.Linear(4, 4, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = Loop(run, model=model)
    for _ in range(3):
        loop.method.backward(lambda: run_backward(model(torch.ones(1, 4, dtype=torch.bfloat16)).float().mean()))
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert values == pytest.approx([1.0, 0.999, 0.998001], rel=1e-6)


@pytest.mark.parametrize("scope", ["global", "micro_batch"])
@pytest.mark.parametrize("failing", ["exception", "overflow", "overflow in the replay"])
def test_a_step_that_fails_keeps_nothing(failing: str, scope: str) -> None:
    def run(step: Step) -> None:
        known.append(step.kept("one"))
        step.keep("one", [t.clone() for t in step.gradient()])
        step.climb(0.1)
        step.replay()
        step.keep("other", [t.clone() for t in step.gradient()])

    known: list[Any] = []
    model = Net(Saboteur).double()
    loop = Loop(run, 1, model=model, scope=scope)
    parts = 2 if scope == "micro_batch" else 1

    def closures(number: int) -> list[Callable[[], Tensor]]:
        return [lambda: accumulate(model, STEPS[number][0], parts)] * parts

    loop.method.backward(closures(0))
    loop.optimizer.zero_grad()
    before = loop.method.state_dict()["course"]["kept"]["kept"]
    bad = model.middle.backwards + (1 if failing == "overflow" else 2)

    def sabotage(n: int, gradient: Tensor) -> Tensor:
        if n == bad and failing == "exception":
            raise RuntimeError("boom")
        return gradient * (float("inf") if n == bad else 1.0)

    model.middle.on_backward = sabotage
    if failing == "exception":
        with pytest.raises(RuntimeError, match="boom"):
            loop.method.backward(closures(1))
    else:
        loop.method.backward(closures(1))
        assert not all(p.grad.isfinite().all() for p in model.parameters())
    loop.optimizer.zero_grad()
    after = loop.method.state_dict()["course"]["kept"]["kept"]
    assert set(after) == {"one", "other"}
    for name, tensors in before.items():
        assert len(tensors) == 4
        assert all(torch.equal(tensors[n], after[name][n]) for n in tensors)
    loop.method.backward(closures(2))
    assert torch.equal(long(known[-parts]), long(list(before["one"].values())))


def averaging(step: Step) -> None:
    """An average of gradients, climbed along together with some noise."""
    average = step.kept("one") or [torch.zeros_like(t) for t in step.gradient()]
    for a, g in zip(average, step.gradient(), strict=True):
        a.mul_(0.9).add_(g, alpha=0.1)
    step.keep("one", [a.clone() for a in average])
    for a, noise in zip(average, step.random_direction(), strict=True):
        a.add_(noise, alpha=0.01)
    step.climb_along(average, 0.3 * (1 - step.progress))
    step.replay()


def test_resuming_is_bit_for_bit(tmp_path: Any) -> None:
    """Average, noise, number of the step: through torch.save, and back with weights_only."""

    def loop() -> Loop:
        torch.manual_seed(3)
        return Loop(averaging, 1, total_steps=6, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))

    whole = loop()
    for batches in STEPS:
        whole.step(batches[0])
    first = loop()
    for batches in STEPS[:3]:
        first.step(batches[0])
    for name in ("model", "optimizer", "method"):
        torch.save(getattr(first, name).state_dict(), tmp_path / name)
    second = loop()
    torch.manual_seed(4)
    for name in ("model", "optimizer", "method"):
        getattr(second, name).load_state_dict(torch.load(tmp_path / name, weights_only=True))
    for batches in STEPS[3:]:
        second.step(batches[0])
    assert torch.equal(flat(second.model), flat(whole.model))
    assert not any(name in state for state in first.optimizer.state.values() for name in ("one", "other"))


def altered(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    first = Loop(averaging, 1, total_steps=6)
    first.step()
    state = first.method.state_dict()
    change(state["course"])
    return state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda course: course.pop("kept"), "there is none"),
        (lambda course: course["kept"].update(layout="2 ranks"), "saved on 2 ranks, and this is 1 rank"),
        (lambda course: course["kept"].update(method="other"), "of the method 'other', not of 'own'"),
        (lambda course: course["kept"]["kept"]["one"].update({0: torch.zeros(3)}), "not the shapes"),
        (lambda course: course["kept"]["kept"]["one"].update({9: torch.zeros(3)}), "not the shapes"),
    ],
)
def test_a_state_that_does_not_fit_starts_anew_and_says_so(change: Any, reason: str) -> None:
    second = Loop(averaging, 1, total_steps=6)
    with pytest.warns(UserWarning, match=f"keeps.*starts anew.*{reason}"):
        second.method.load_state_dict(altered(change))
    assert second.method.state_dict()["course"]["steps_made"] == 1
    second.step()


def test_a_state_of_before_there_was_any_is_taken_over() -> None:
    """A method without tensors reads what an earlier version saved."""
    from hf_sharpness import XSAM

    model = Net()
    method = XSAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.load_state_dict({"alpha": 0.7, "steps_taken": 4})
    assert method.alpha == 0.7
