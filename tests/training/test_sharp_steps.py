"""Methods that are on in some steps only (`sam_start`, `sam_stop`), and rho from step to step.

Against the float64 references, and bit for bit against a stock run where no step is the method's.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from models import BUFFERED, MaskRecorder, Net, classification, steps_of
from reference import (
    BASES,
    Base,
    InSteps,
    Record,
    Spec,
    by_name,
    flat,
    linear_ramp,
    linear_schedule,
    reference_run,
    sharp_steps,
)
from torch import nn

from hf_sharpness import SAM
from hf_sharpness.engine.phase import first_from
from hf_sharpness.engine.state import State

ITEMS = classification(96)  # 12 batches of 8
STEPS = steps_of(ITEMS, 8, epochs=2)
TOTAL = len(STEPS)
EXACT = {"rtol": 1e-9, "atol": 1e-9}
METHODS = by_name("sam", "asam-k2", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3")
BASE = BASES[1]
WHEN: dict[str, dict[str, Any]] = {
    "late": {"start": 0.4},
    "early": {"stop": 0.6},
    "between": {"start": 0.25, "stop": 0.7},
    "late-in-the-second-epoch": {"start": 0.65},
    "once": {"start": 0.5, "stop": 0.52},
}
every_method = pytest.mark.parametrize("spec", METHODS, ids=str)


def arguments(options: dict[str, Any]) -> dict[str, Any]:
    return {f"sam_{name}": value for name, value in options.items()}


def sharp(options: dict[str, Any]) -> list[int]:
    return sharp_steps(TOTAL, **{name: str(value) for name, value in options.items()})


def expected(spec: Spec, steps: list[int], lrs: list[float] | None = None, **options: Any) -> list[Record]:
    method = InSteps(spec.reference(), steps, **options)
    lrs = [BASE.lr] * TOTAL if lrs is None else lrs
    return reference_run(Net(), STEPS, method, BASE.reference(), lrs, 0.5, epoch_starts=(0, 12))


def assert_same(weights: list[torch.Tensor], records: list[Record]) -> None:
    torch.testing.assert_close(torch.stack(weights), torch.stack([record.weights for record in records]), **EXACT)


def in_a_loop(plain: Any, spec: Spec, lrs: list[float] | None = None, **options: Any) -> list[torch.Tensor]:
    model = Net().double()
    optimizer = BASE.torch(model.parameters())
    method = Spec("", spec.method, spec.settings | {"total_steps": TOTAL} | options).ours(model, optimizer)
    factors = None if lrs is None else [lr / BASE.lr for lr in lrs]
    return plain(model, STEPS, optimizer, method, lrs=factors, max_norm=0.5, epoch_starts=(0, 12))


def in_a_trainer(train: Any, spec: Spec, options: dict[str, Any], **others: Any) -> Any:
    base = Base(BASE.name, BASE.lr, BASE.momentum)
    chosen = spec.arguments() | base.arguments() | arguments(options)
    return train(Net().double(), ITEMS, num_train_epochs=2, max_grad_norm=0.5, **chosen | others)


def without_decay(spec: Spec, steps: list[int], lrs: list[float] | None = None, **options: Any) -> list[Record]:
    base = Base(BASE.name, BASE.lr, BASE.momentum)
    method = InSteps(spec.reference(), steps, **options)
    lrs = [base.lr] * TOTAL if lrs is None else lrs
    return reference_run(Net(), STEPS, method, base.reference(), lrs, 0.5, epoch_starts=(0, 12))


@pytest.mark.parametrize("when", WHEN)
@every_method
def test_the_plain_loop_is_the_reference(spec: Spec, when: str, plain: Any) -> None:
    steps = sharp(WHEN[when])
    assert 0 < len(steps) < TOTAL
    assert_same(in_a_loop(plain, spec, **WHEN[when]), expected(spec, steps))


@pytest.mark.parametrize("when", ["late", "between"])
@every_method
def test_the_trainer_is_the_reference(spec: Spec, when: str, train: Any) -> None:
    steps = sharp(WHEN[when])
    run = in_a_trainer(train, spec, WHEN[when])
    records = without_decay(spec, steps)
    assert_same(run.weights, records)
    logged = {entry["step"]: entry["sharpness"] for entry in run.trainer.state.log_history if "sharpness" in entry}
    assert sorted(logged) == [step + 1 for step in steps]
    handed = [records[step].handed for step in steps]
    sharpness = torch.tensor([h.perturbed_loss - h.loss for h in handed])
    torch.testing.assert_close(torch.tensor(list(logged.values())), sharpness, rtol=1e-4, atol=1e-5)
    assert len(run.series("loss")) == TOTAL


def test_which_steps_they_are() -> None:
    """A step k is sharpness-aware if start <= k / total < stop, whatever decimal fractions do in binary."""
    fractions = [f"{p / q:.4f}".rstrip("0") or "0" for q in (2, 3, 7, 10, 20) for p in range(q)] + ["0.1", "0.29"]
    for total, fraction in itertools.product((1, 2, 3, 10, 29, 30, 100, 1000, 997), fractions):
        exact = sharp_steps(total, start=fraction)
        assert first_from(float(fraction), total) == (exact[0] if exact else total), (fraction, total)


@pytest.mark.parametrize("when", [*WHEN, "throughout"])
def test_a_phase_counts_its_steps(when: str) -> None:
    model, options = Net(), WHEN.get(when, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    phase = SAM(model, optimizer, total_steps=TOTAL, **options).engine.phase
    steps = sharp(options)
    assert [k for k in range(TOTAL) if phase.includes(k)] == steps
    assert [phase.count_before(k) for k in range(TOTAL + 1)] == [sum(s < k for s in steps) for k in range(TOTAL + 1)]
    assert (phase.planned, phase.is_whole) == (len(steps), when == "throughout")


@every_method
def test_a_step_that_is_not_the_methods_is_a_stock_step(
    spec: Spec, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with dropout and BatchNorm: weights, buffers, random state; one pass; no walk through the state."""
    items = classification(96, torch.float32)
    walks: list[int] = []
    take = State.take
    monkeypatch.setattr(State, "take", lambda self, closure: walks.append(1) or take(self, closure))
    common = {"num_train_epochs": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "shuffle": True}
    common |= BASES[2].arguments() | {"per_device_train_batch_size": 4}

    def noisy() -> Net:
        return Net(lambda: nn.Sequential(MaskRecorder(0.3), BUFFERED["batch_norm_1d"]()))

    stock = train(
        noisy(),
        items,
        stock=True,
        **{k: v for k, v in common.items() if k != "base_optim"} | {"optim": common["base_optim"]},
    )
    whole_grid = {"xsam_search": "grid"} if spec.method == "xsam" else {}
    ours = train(noisy(), items, sam_start=0.75, **common | spec.arguments() | whole_grid)
    first = 9  # of 12
    masks = [run.model.middle[0].masks for run in (stock, ours)]
    for step in range(first):
        assert torch.equal(ours.weights[step], stock.weights[step]), step
    assert not torch.equal(ours.weights[first], stock.weights[first])
    assert len(walks) == 2 * (12 - first)
    assert all(torch.equal(a, b) for a, b in zip(*(m[: 2 * first] for m in masks), strict=True))
    assert len(masks[0]) == 24
    assert len(masks[1]) > 24
    passes = 24 + 2 * 3 * spec.settings.get("steps", 1) + (21 * 2 / 3 if spec.method == "xsam" else 0)
    assert ours.trainer.state.total_flos / stock.trainer.state.total_flos == pytest.approx(passes / 24)


@pytest.mark.parametrize("schedule", ["lr", "linear"])
@every_method
def test_rho_follows_its_schedule(spec: Spec, schedule: str, plain: Any) -> None:
    lrs = linear_schedule(BASE.lr, 3, TOTAL)
    steps = sharp({} if schedule == "lr" else {"stop": 0.99})
    factor = linear_ramp(steps) if schedule == "linear" else lambda step: lrs[step] / BASE.lr
    assert {factor(step) for step in steps} != {1.0}
    if spec.name == "xsam":
        spec = Spec("xsam", "xsam", spec.settings | {"rho_max": 0.9})
    options = {"rho_schedule": schedule} | ({"stop": 0.99} if schedule == "linear" else {})
    assert_same(in_a_loop(plain, spec, lrs, **options), expected(spec, steps, lrs, factor=factor))


@pytest.mark.parametrize("schedule", ["lr", "linear"])
def test_rho_follows_its_schedule_in_the_trainer(schedule: str, train: Any) -> None:
    spec, lrs = by_name("wsam-decoupled")[0], linear_schedule(BASE.lr, 3, TOTAL)
    steps = sharp({"start": 0.1})
    factor = linear_ramp(steps) if schedule == "linear" else lambda step: lrs[step] / BASE.lr
    options = {"start": 0.1, "rho_schedule": schedule}
    run = in_a_trainer(train, spec, options, lr_scheduler_type="linear", warmup_steps=3)
    assert_same(run.weights, without_decay(spec, steps, lrs, factor=factor))
    norms = run.series("perturbation_norm")
    torch.testing.assert_close(norms, [0.2 * factor(step) for step in steps], rtol=1e-5, atol=1e-7)
    assert flat(run.model).isfinite().all()


def test_the_distance_of_probes_follows_too() -> None:
    """XSAM's `rho_max`, where it is given; and all is as before afterwards."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for rho_max in (0.4, None):
        options = {"rho_max": rho_max, "total_steps": 40, "rho_schedule": "linear"}
        method = Spec("", "xsam", {"rho": 0.1} | options).ours(model, optimizer)
        with method.engine.phase.rho_of_step(optimizer):
            assert (method.method.rho, method.method.rho_max) == (0.025, rho_max and 0.1)
        assert (method.method.rho, method.method.rho_max) == (0.1, rho_max)
