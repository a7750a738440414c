"""What a method of one's own finds in a step, worked out by hand; and what becomes of one that breaks its word."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from models import Net, Saboteur, accumulate, classification, steps_of
from reference import flat
from torch import Tensor, nn

from hf_sharpness.loop import SharpnessAware
from hf_sharpness.methods import Method, Step

pytestmark = pytest.mark.filterwarnings("ignore:method.backward was called again")  # nothing is trained here

STEPS = steps_of(classification(48), 8)
Run = Callable[[Step], None]


@dataclasses.dataclass
class Own(Method):
    """Runs a function of the test."""

    name: ClassVar[str] = "own"
    paper: ClassVar[str] = ""
    scopes: ClassVar[tuple[str, ...]] = ("global", "device", "micro_batch")
    keeps: ClassVar[tuple[str, ...]] = ("one", "other")

    what: Any = None
    made: int = 0

    @property
    def replays(self) -> int:
        return self.made

    def run(self, step: Step) -> None:
        self.what(step)


class Loop:
    """A model in training with a function as its method."""

    def __init__(self, run: Run, replays: int = 0, model: nn.Module | None = None, **options: Any):
        self.model = Net().double() if model is None else model
        make = options.pop("optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        self.optimizer = make(self.model.parameters())
        self.method = SharpnessAware(Own(run, replays), self.model, self.optimizer, **options)

    def step(self, batch: Any = None, take: bool = True) -> None:
        self.method.backward(lambda: accumulate(self.model, STEPS[0][0] if batch is None else batch, 1), measure=True)
        if take:
            self.optimizer.step()
            self.optimizer.zero_grad()


def long(vector: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in vector]).clone()


def seen(run: Callable[[Step], Any], replays: int = 0, **options: Any) -> Any:
    """What a function of the step returns, in one step."""
    results: list[Any] = []
    Loop(lambda step: results.append(run(step)), replays, **options).step()
    return results[0]


def test_norm_and_dot_are_those_of_one_long_vector() -> None:
    def run(step: Step) -> None:
        g, d = step.gradient(), step.random_direction()
        torch.testing.assert_close(step.norm(d), long(d).norm())
        torch.testing.assert_close(step.dot(g, d), long(g) @ long(d))
        torch.testing.assert_close(step.dot(g[:2], d), long(g[:2]) @ long(d[:2]))

    seen(run)


def test_dot_of_parameters_on_one_memory_is_that_of_what_moves() -> None:
    """Two parameters on the same numbers: the entries of both add up, as in the norm."""
    model = Net().double()
    model.twin = nn.Parameter(model.last.weight.detach())

    def run(step: Step) -> None:
        g = step.gradient()
        torch.testing.assert_close(step.dot(g, g), step.norm(g) ** 2)
        d = step.random_direction()
        torch.testing.assert_close(
            step.norm(d), math.sqrt(len(flat(Net()))) * torch.ones((), dtype=torch.float64), rtol=0.3, atol=0
        )

    loop = Loop(run, model=model)
    loop.method.backward(lambda: (accumulate(model, STEPS[0][0], 1), (model.twin * 2).sum().backward())[0])


@pytest.mark.parametrize("length", [0.3, -0.2, torch.tensor(0.3, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_climb_along_moves_the_weights_by_that_length(length: Any, adaptive: bool) -> None:
    def run(step: Step) -> None:
        d = step.random_direction()
        scale = w.abs() if adaptive else torch.ones_like(w)
        expected = float(length) * scale**2 * long(d) / (scale * long(d)).norm()
        g = long(step.gradient())
        moved = step.climb_along(d, length, adaptive)
        torch.testing.assert_close(flat(loop.model) - w, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(long(moved), expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(long(step.gradient()), g)
        step.climb_along(step.pad(moved[:1]), length)
        step.replay()

    loop = Loop(run, 1)
    w = flat(loop.model)
    loop.step(take=False)
    assert torch.equal(flat(loop.model), w)
    g = long([p.grad for p in loop.model.parameters()])
    assert loop.method.metrics["ascent_grad_norm"] > 0
    assert loop.method.metrics["perturbation_norm"] > 0.1
    assert g.isfinite().all()


def test_a_zero_direction_moves_nothing() -> None:
    def run(step: Step) -> None:
        step.climb_along([torch.zeros_like(t) for t in step.gradient()], 0.3)
        assert torch.equal(flat(loop.model), w)

    loop = Loop(run)
    w = flat(loop.model)
    loop.step()


@pytest.mark.parametrize("taken", [False, True])
def test_a_direction_that_is_not_finite_moves_nothing_and_a_scaler_skips(taken: bool) -> None:
    """Whether p.grad was taken away before or not: something that is not finite is there for the scaler to find."""

    def run(step: Step) -> None:
        g = step.take_gradient() if taken else [t.clone() for t in step.gradient()]
        bad = len(loop.method.metrics) > 0
        g[0][0] = float("nan") if bad else g[0][0]
        if bad and not taken:
            step.gradient()[0][0] = float("inf")
        step.climb_along(g, 0.1)
        step.replay()

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop = Loop(run, 1, scaler=scaler)
    weights = [flat(loop.model)]
    for _ in range(2):
        loop.method.backward(lambda: closure(loop.model, scaler))
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
        weights.append(flat(loop.model))
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert scaler.get_scale() == 4.0


def closure(model: nn.Module, scaler: Any) -> Tensor:
    loss = model(**STEPS[0][0])["loss"]
    scaler.scale(loss).backward()
    return loss.detach()


def test_bfloat16_weights_move_along_a_vector_as_a_whole() -> None:
    """By stochastic rounding, which keeps a displacement far below the spacing of the numbers on average."""

    def run(step: Step) -> None:
        ones = [torch.ones(t.shape) for t in step.gradient()]
        step.climb_along(ones, length)
        moved.append(float((loop.model.weight.detach().float() - 1.0).mean()))

    moved: list[float] = []
    model = nn.Linear(512, 512, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    length = 512 * 2.0**-12  # the spacing at 1 is 2^-7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = Loop(run, model=model)
    loop.method.backward(lambda: run_backward(model(torch.ones(1, 512, dtype=torch.bfloat16)).float().mean()))
    assert moved[0] == pytest.approx(2.0**-12, rel=0.2)
    assert torch.equal(model.weight.detach(), torch.ones_like(model.weight))


def run_backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


# Where the training is.


def test_number_progress_and_learning_rate() -> None:
    facts: list[tuple[float, ...]] = []
    loop = Loop(
        lambda step: facts.append((step.number, step.progress, step.learning_rate, step.peak_learning_rate)),
        total_steps=4,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, [0.0, 1.0, 0.5, 0.25, 0.0].__getitem__)
    for _ in range(4):
        loop.step()
        scheduler.step()
    assert facts == [(0, 0.0, 0.0, 0.1), (1, 0.25, 0.1, 0.1), (2, 0.5, 0.05, 0.1), (3, 0.75, 0.025, 0.1)]


def test_without_a_schedule_the_learning_rate_is_its_own_peak() -> None:
    assert seen(lambda step: step.peak_learning_rate) == 0.1


def test_progress_ends_at_one() -> None:
    seen_progress: list[float] = []
    loop = Loop(lambda step: seen_progress.append(step.progress), total_steps=1)
    for _ in range(3):
        loop.step()
    assert seen_progress == [0.0, 1.0, 1.0]


def test_progress_without_a_length_is_refused() -> None:
    loop = Loop(lambda step: print(step.progress))
    before = flat(loop.model)
    with pytest.raises(ValueError, match="total_steps"):
        loop.step()
    assert torch.equal(flat(loop.model), before)


@pytest.mark.parametrize("total", [0, -1, 2.5, "3"])
def test_a_length_that_is_none_is_refused(total: Any) -> None:
    with pytest.raises(ValueError, match=f"total_steps={total!r}"):
        Loop(lambda step: None, total_steps=total)


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    loop = Loop(lambda step: print(step.learning_rate))
    loop.optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="SGD finds its own"):
        loop.step()


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_loss_scale(scale: float | None) -> None:
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    loop = Loop(lambda step: scales.append(float(step.loss_scale)), scaler=scaler)
    scales: list[float] = []
    loop.method.backward(lambda: closure(loop.model, torch.amp.GradScaler("cpu", enabled=False)))
    assert scales == [scale or 1.0]


# How many passes.


def replaying(number: int) -> Run:
    def run(step: Step) -> None:
        for _ in range(number):
            step.climb(0.1)
            step.replay()

    return run


@pytest.mark.parametrize(("announced", "made"), [(0, 1), (1, 0), (1, 2), (3, 2)])
def test_another_number_of_passes_than_announced_is_an_error(announced: int, made: int) -> None:
    loop = Loop(replaying(made), announced)
    before = flat(loop.model)
    with pytest.raises(RuntimeError, match=rf"'own' makes .* the {announced} further passes .*`replays_of\(step\)`"):
        loop.step()
    assert torch.equal(flat(loop.model), before)


@dataclasses.dataclass
class EveryOther(Own):
    """A pass more in every other step."""

    def replays_of(self, step: Step) -> Any:
        return self.made if step.number % 2 else 0

    def run(self, step: Step) -> None:
        if step.replays:
            replaying(step.replays)(step)


def test_a_step_without_a_pass_is_the_base_optimizers() -> None:
    """and has no perturbed loss to report."""
    losses = []
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SharpnessAware(EveryOther(made=2), model, optimizer)
    twin = deepcopy(model)
    for number in range(4):
        plain = deepcopy(model)
        accumulate(plain, STEPS[number][0], 1)
        method.backward(lambda n=number: accumulate(model, STEPS[n][0], 1))
        same = all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
        assert same == (number % 2 == 0)
        losses.append("perturbed_loss" in method.metrics)
        optimizer.step()
        optimizer.zero_grad()
    assert losses == [False, True, False, True]
    assert not torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("announced", [-1, 1.0, None, True])
def test_a_number_of_passes_that_is_none_is_an_error(announced: Any) -> None:
    model = Net().double()
    method = SharpnessAware(EveryOther(made=announced), model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.backward(lambda: accumulate(model, STEPS[0][0], 1))
    with pytest.raises(ValueError, match=f"announced {announced!r}"):
        method.backward(lambda: accumulate(model, STEPS[0][0], 1))


def test_a_method_that_announces_nothing_is_an_error() -> None:
    @dataclasses.dataclass
    class Silent(Method):
        name: ClassVar[str] = "silent"
        paper: ClassVar[str] = ""

    model = Net().double()
    method = SharpnessAware(Silent(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NotImplementedError, match=r"Silent.*`replays`"):
        method.backward(lambda: accumulate(model, STEPS[0][0], 1))


# The base optimizer's state.

STATES = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum", "momentum_buffer"),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.1), "momentum", "exp_avg"),
    "adamw-second": (lambda p: torch.optim.AdamW(p, lr=0.1), "second_moment", "exp_avg_sq"),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.1), "second_moment", "square_avg"),
    "adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.1), "second_moment", "sum"),
    "own-name": (lambda p: torch.optim.Adamax(p, lr=0.1), "exp_inf", "exp_inf"),
}


@pytest.mark.parametrize(("make", "key", "name"), STATES.values(), ids=STATES)
def test_optimizer_state(make: Any, key: str, name: str) -> None:
    """A copy: spending it leaves the optimizer's own."""
    found: list[Any] = []

    def run(step: Step) -> None:
        state = step.optimizer_state(key)
        found.append(state and long(state))
        if state:
            step.climb_along(state, 0.1)
            assert torch.equal(long([loop.optimizer.state[p][name] for p in loop.model.parameters()]), found[-1])

    loop = Loop(run, optimizer=make)
    for number in range(3):
        expected = [loop.optimizer.state[p][name].clone() for p in loop.model.parameters() if loop.optimizer.state[p]]
        loop.step(STEPS[number][0])
        before_first_step = number == 0 and key != "second_moment" and name != "sum"
        if found[-1] is None:
            assert number == 0
            assert not expected or before_first_step
        else:
            assert torch.equal(found[-1], long(expected))


@pytest.mark.parametrize(
    ("make", "key", "first"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "momentum", 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "second_moment", 1),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "step", 1),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "no such thing", 1),
    ],
)
def test_an_optimizer_without_such_a_state_is_refused(make: Any, key: str, first: int) -> None:
    loop = Loop(lambda step: step.optimizer_state(key) and None, optimizer=make)
    for _ in range(first):
        loop.step()
    with pytest.raises(ValueError, match=f"base optimizer .* state {key!r}"):
        loop.step()


# Random directions.


def test_random_directions_are_normal_and_leave_the_trainings_numbers_alone() -> None:
    def run(step: Step) -> None:
        before = torch.get_rng_state()
        drawn.extend([long(step.random_direction()), long(step.random_direction())])
        assert torch.equal(torch.get_rng_state(), before)

    drawn: list[Tensor] = []
    loop = Loop(run, model=nn.Linear(100, 100))
    for _ in range(2):
        loop.method.backward(lambda: run_backward(loop.model(torch.ones(1, 100)).mean()))
    assert all(torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.05 for i, a in enumerate(drawn) for b in drawn[:i])
    for vector in drawn:
        assert vector.mean().abs() < 0.05
        assert vector.std() == pytest.approx(1.0, abs=0.05)
        assert vector.abs().max() > 3


def test_random_directions_repeat_with_the_seed_and_differ_without() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return seen(lambda step: long(step.random_direction()))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_micro_batches_that_run_alone_draw_directions_of_their_own() -> None:
    drawn: list[Tensor] = []
    loop = Loop(lambda step: drawn.append(long(step.random_direction())), scope="micro_batch")
    loop.method.backward([lambda: accumulate(loop.model, STEPS[0][0], 2)] * 2)
    assert not torch.equal(*drawn)


def test_an_interrupted_step_draws_the_same_again() -> None:
    def run(step: Step) -> None:
        drawn.append(long(step.random_direction()))
        if len(drawn) == 1:
            raise KeyboardInterrupt

    drawn: list[Tensor] = []
    loop = Loop(run)
    with pytest.raises(KeyboardInterrupt):
        loop.step()
    loop.optimizer.zero_grad()
    loop.step()
    assert torch.equal(*drawn)


def test_overlapping_parameters_draw_one_number_for_each_weight() -> None:
    """Entries of parameters on one memory add up: their sum is what is normal."""
    model = nn.Linear(200, 200, bias=False)
    model.twin = nn.Parameter(model.weight.detach())

    def run(step: Step) -> None:
        start = model.weight.detach().clone()
        direction = step.random_direction()
        size = step.norm(direction)
        step.climb_along(direction, size)
        moved.append(model.weight.detach() - start)

    moved: list[Tensor] = []
    loop = Loop(run, model=model)
    x = torch.ones(1, 200)
    loop.method.backward(lambda: run_backward((model(x) + x @ model.twin.t()).mean()))
    assert moved[0].std() == pytest.approx(1.0, abs=0.03)


# What outlives the step.


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
