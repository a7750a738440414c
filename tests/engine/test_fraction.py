"""The correction from a part of the batch: the plain loop and the Trainer against a float64 reference of their own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import Batch, MaskRecorder, Net, Saboteur, TinyLM, accumulate, classification, sentences, steps_of
from reference import BASES, Base, Spec, flat, reference_run, token_losses
from torch import Tensor, nn

from hf_sharpness import SAM, XSAM, SharpnessAware, TrainingArguments
from hf_sharpness.methods import METHODS, Options, register
from hf_sharpness.methods.registry import unregister

EXACT = {"rtol": 1e-9, "atol": 1e-9}
PARTS = [
    Spec("sam", "sam", {"rho": 0.2, "fraction": 0.25}),
    Spec("asam", "sam", {"rho": 0.5, "adaptive": True, "fraction": 0.5}),
    Spec("coupled", "wsam", {"rho": 0.2, "mode": "coupled", "gamma": 0.7, "fraction": 0.25}),
    Spec("coupled-asam", "wsam", {"rho": 0.5, "mode": "coupled", "gamma": 0.2, "adaptive": True, "fraction": 0.5}),
    Spec("decoupled", "wsam", {"rho": 0.2, "mode": "decoupled", "gamma": 0.9, "fraction": 0.25}),
]
by_spec = pytest.mark.parametrize("spec", PARTS, ids=str)
# Steps of 8 micro-batches, and one of 3: of it a quarter is one micro-batch, and half of it are two.
STEPS = [*steps_of(classification(96), 3, accumulation=8), steps_of(classification(9, seed=4), 3, accumulation=3)[0]]


def closures(model: nn.Module, step: Sequence[Batch]) -> list[Any]:
    return [functools.partial(accumulate, model, batch, len(step)) for batch in step]


def train_plain(model: nn.Module, steps: Any, method: Any, optimizer: Any) -> list[dict[str, Any]]:
    """Train in place; weights and metrics after every step."""
    seen = []
    for step in steps:
        method.backward(closures(model, step), measure=True)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        seen.append({"weights": flat(model), **method.metrics})
    return seen


@pytest.mark.parametrize("base", BASES, ids=str)
@by_spec
def test_a_plain_loop_follows_the_formula(spec: Spec, base: Base) -> None:
    model = Net().double()
    records = reference_run(
        model, STEPS, spec.reference(), base.reference(), [base.lr] * len(STEPS), 0.5, epoch_starts=()
    )
    optimizer = base.torch(model.parameters())
    seen = train_plain(model, STEPS, spec.ours(model, optimizer), optimizer)
    for now, record in zip(seen, records, strict=True):
        torch.testing.assert_close(now["weights"], record.weights, **EXACT)
        handed = record.handed
        assert float(now["loss"]) == pytest.approx(handed.loss)
        assert float(now["sharpness"]) == pytest.approx(handed.perturbed_loss - handed.loss, abs=1e-12)
        assert float(now["ascent_grad_norm"]) == pytest.approx(handed.ascent_grad_norm)
        assert float(now["perturbation_norm"]) == pytest.approx(handed.perturbation_norm)


@by_spec
def test_the_trainer_follows_it(spec: Spec, train: Any) -> None:
    """Token counts that differ between micro-batches: each counts by its share of the batch's items."""
    items, base = sentences(44), BASES[0]
    for item in items:
        item["labels"][0] = -100  # no target by any way of counting
    model, steps = TinyLM().double(), steps_of(items, 4, accumulation=4)
    records = reference_run(
        model, steps, spec.reference(), base.reference(), [base.lr] * len(steps), losses=token_losses, epoch_starts=()
    )
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments(),
        max_grad_norm=0.0,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )
    assert [len(step) for step in steps] == [4, 4, 3]
    torch.testing.assert_close(torch.stack(run.weights), torch.stack([r.weights for r in records]), **EXACT)
    sharpness = [r.handed.perturbed_loss - r.handed.loss for r in records]
    assert run.series("sharpness") == pytest.approx(sharpness, abs=1e-7)


@pytest.mark.parametrize("name", ["sam", "coupled", "decoupled"])
def test_the_whole_of_a_batch_is_the_step_without_it(name: str) -> None:
    """Bit for bit; also where rounding makes a part all of a step's micro-batches, as .9 of three."""
    (spec,) = (s for s in PARTS if s.name == name)
    whole = {key: value for key, value in spec.settings.items() if key != "fraction"}
    runs = []
    for settings in (whole, whole | {"fraction": 1.0}, whole | {"fraction": 0.9}):
        model = Net().double()
        optimizer = BASES[2].torch(model.parameters())
        method = Spec(name, spec.method, settings).ours(model, optimizer)
        runs.append(train_plain(model, [step[:3] for step in STEPS], method, optimizer)[-1]["weights"])
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", ["sam", "coupled", "decoupled"])
def test_passes_and_masks(name: str) -> None:
    """A quarter of eight micro-batches is gone through again, with the masks that it had."""
    (spec,) = (s for s in PARTS if s.name == name)
    model = Net(MaskRecorder).double()
    method = spec.ours(model, BASES[0].torch(model.parameters()))
    method.backward(closures(model, STEPS[0]))
    masks = model.middle.masks
    assert len(masks) == 8 + 2
    assert torch.equal(masks[8], masks[0])
    assert torch.equal(masks[9], masks[1])
    assert method.engine.course.progress.repeated == 2


def test_a_base_that_maximizes() -> None:
    model, twin = Net().double(), Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    up, down = (PARTS[2].ours(*pair) for pair in ((model, optimizer), (twin, other)))

    def negated(batch: Batch) -> Tensor:
        loss = -model(**batch)["loss"] / 8
        loss.backward()
        return loss.detach()

    for step in STEPS[:3]:
        up.backward([functools.partial(negated, batch) for batch in step])
        down.backward(closures(twin, step))
        optimizer.step(), other.step(), optimizer.zero_grad(), other.zero_grad()
    torch.testing.assert_close(flat(model), flat(twin), **EXACT)


def test_closures_that_read_gradients() -> None:
    """They find none of an earlier pass: what the part adds to is set aside."""
    model, twin = Net().double(), Net().double()
    optimizer, other = (BASES[0].torch(m.parameters()) for m in (model, twin))
    method, plain = PARTS[2].ours(model, optimizer), PARTS[2].ours(twin, other)

    def reading(batch: Batch) -> Tensor:
        _ = [p.grad for p in model.parameters()]
        return accumulate(model, batch, 8)

    for step in STEPS[:3]:
        method.backward([functools.partial(reading, batch) for batch in step])
        plain.backward(closures(twin, step))
        optimizer.step(), other.step(), optimizer.zero_grad(), other.zero_grad()
    assert method.engine.habits.touch_gradients
    torch.testing.assert_close(flat(model), flat(twin), **EXACT)


@pytest.mark.parametrize("when", ["ascent", "replay"])
def test_a_gradient_that_is_not_finite_is_left_for_the_scaler(when: str) -> None:
    model = Net(Saboteur).double()
    bad = 8 if when == "ascent" else 9
    model.middle.on_backward = lambda n, g: g * (float("inf") if n == bad else 1.0)
    optimizer = BASES[2].torch(model.parameters())
    method = PARTS[0].ours(model, optimizer)
    before = flat(model)
    method.backward(closures(model, STEPS[0]))
    assert torch.equal(flat(model), before)
    assert not all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.checked
@pytest.mark.parametrize("spec", PARTS[:3:2], ids=str)
def test_the_guard_finds_nothing(spec: Spec, recwarn: Any) -> None:
    model = Net(nn.Dropout).double()
    optimizer = BASES[0].torch(model.parameters())
    spec = Spec(spec.name, spec.method, spec.settings | {"check": "error"})
    train_plain(model, STEPS[:2], spec.ours(model, optimizer), optimizer)
    assert not recwarn.list


# What is refused.


def test_what_is_refused_in_a_plain_loop() -> None:
    model = Net()
    optimizer = BASES[0].torch(model.parameters())
    with pytest.raises(ValueError, match=r"fraction=0.5 is not defined for xsam: use sam or wsam"):
        XSAM(model, optimizer, fraction=0.5)
    with pytest.raises(ValueError, match=r"fraction=0.5 is defined for one ascent step.*use steps=1"):
        SAM(model, optimizer, steps=2, fraction=0.5)
    with pytest.raises(ValueError, match=r"does not go with scope='micro_batch'.*use scope='global'"):
        SAM(model, optimizer, scope="micro_batch", fraction=0.5)
    for value in (0, -1, 1.5, float("nan"), True):
        with pytest.raises(ValueError, match=r"fraction=.* must be a number with 0 < fraction <= 1"):
            Options(fraction=value)
    method = SAM(model, optimizer, fraction=0.5)
    one, two = closures(model, STEPS[0][:2])
    with pytest.raises(ValueError, match=r"fraction=0.5 takes the first .*list of closures.*part="):
        method.backward(one)
    with pytest.raises(ValueError, match=r"part=\.\.\. goes with one closure"):
        method.backward([one, two], part=one)
    with pytest.raises(ValueError, match=r"part=\.\.\. goes with one closure"):
        SAM(model, optimizer).backward(one, part=two)
    with pytest.raises(TypeError, match="part=a Tensor is not valid"):
        method.backward(one, part=torch.ones(()))


def test_a_method_that_does_not_declare_it_is_refused() -> None:
    """A class of its own that derives from SAM may be anything but linear in a replay's gradient."""

    @register
    class Steeper(METHODS["sam"]):
        name = "steeper"

    try:
        model = Net()
        with pytest.raises(ValueError, match="is not defined for steeper"):
            SharpnessAware(Steeper(), model, BASES[0].torch(model.parameters()), fraction=0.5)
    finally:
        unregister("steeper")


REFUSED = {
    "xsam": ({"optim": "xsam"}, "sam_fraction=0.5 is not defined for xsam: use sam or wsam, or sam_fraction=1"),
    "steps": ({"sam_steps": 3}, "use sam_steps=1, or sam_fraction=1"),
    "scope": ({"sam_scope": "micro_batch"}, "use sam_scope='global' or 'device', or sam_fraction=1"),
    "examples": (
        {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 1},
        "first of a batch's 1 examples, and rounds to all of them: use a larger per_device_train_batch_size",
    ),
    "deepspeed": ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "does not run under DeepSpeed.*FSDP2"),
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_among_arguments(given: Any, tmp_path: Any) -> None:
    arguments, message = given
    if "deepspeed" in arguments:
        pytest.importorskip("deepspeed")
    settings = {"optim": "sam", "sam_fraction": 0.5, "gradient_accumulation_steps": 4} | arguments
    with pytest.raises(ValueError, match=message):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
