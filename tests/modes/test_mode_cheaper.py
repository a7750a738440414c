"""Cheaper steps on two real gloo ranks: the correction from a part of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from launch import Ranks
from models import Net
from reference import Base, Spec, reference_run
from reference.targets import restricted
from specs_of_modes import BASE, MAX_NORM, METHODS, PARTS, joined, rank_batches, without_decay
from torch import Tensor, nn

Launcher = Callable[[str], Ranks]
ROUNDING = {"rtol": 0, "atol": 1e-9}
GLOBAL = [spec for spec in PARTS if spec.name.startswith("global")]
by_scope = pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in PARTS], ids=str)
by_method = pytest.mark.parametrize("spec", GLOBAL, ids=str)


def expected(spec: Spec, model: nn.Module | None = None, base: Base = BASE) -> list[Tensor]:
    """The weights after every step by the float64 reference, to which the ranks are stretches of one batch."""
    by_rank = [rank_batches(rank, 4, 4) for rank in (0, 1)]
    steps = [first + second for first, second in zip(*by_rank, strict=True)]
    method = replace(spec, settings=spec.settings | {"ranks": 2}).reference()
    records = reference_run(model or Net(), steps, method, base.reference(), [base.lr] * 4, MAX_NORM)
    return [record.weights for record in records]


def assert_follow(results: Any, weights: list[Tensor]) -> None:
    for first, second, reference in zip(*results, weights, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, reference, **ROUNDING)


@pytest.mark.parametrize("case", ["ddp", "bucket_view", "reading", "hook"])
@by_scope
@pytest.mark.shows(mode="sam_fraction: DDP, scope {scope}, 2 ranks = 1, plain loop", result="exact")
def test_ddp_equals_one_process(case: str, scope: str, spec: Spec, ranks: Launcher) -> None:
    """Also with gradients that are views, where passes begin without a gradient, and with a hook that has a memory."""
    if case == "hook" and scope == "device":
        pytest.skip("only a gradient that is reduced twice would count twice in a hook's memory")
    assert_follow(ranks("cases_cheaper")[f"{case}-{spec}"], expected(spec))


@by_method
@pytest.mark.shows(mode="sam_fraction: DDP, 2 ranks = 1, Trainer", brief="`sam_fraction` under DDP", result="exact")
def test_ddp_trainer_equals_one_process(spec: Spec, ranks: Launcher) -> None:
    results = [result["weights"] for result in ranks("cases_cheaper")[f"trainer_ddp-{spec}"]]
    assert_follow(results, expected(spec, base=without_decay(BASE)))


@by_method
def test_ddp_reduces_once_for_both_halves_of_the_difference(spec: Spec, ranks: Launcher) -> None:
    """Two buckets for the first pass, and two for the replay: as without a fraction."""
    assert ranks("cases_cheaper")[f"all_reduces-{spec}"] == [8, 8]


@by_scope
@pytest.mark.shows(mode="sam_fraction, of examples: DDP, scope {scope}, 2 ranks = 1, plain loop", result="exact")
def test_ddp_examples_of_one_batch(scope: str, spec: Spec, ranks: Launcher) -> None:
    """Of equal micro-batches made one, the same steps."""
    assert_follow(ranks("cases_cheaper")[f"ddp_examples-{spec}"], expected(spec))


@by_method
@pytest.mark.shows(mode="sam_fraction, of examples: DDP, 2 ranks = 1, Trainer", result="exact")
def test_ddp_trainer_examples_of_one_batch(spec: Spec, ranks: Launcher) -> None:
    results = [result["weights"] for result in ranks("cases_cheaper")[f"trainer_examples-{spec}"]]
    assert_follow(results, expected(spec, base=without_decay(BASE)))


@pytest.mark.parametrize("case", ["fsdp2", "fsdp2_examples"])
@by_method
@pytest.mark.shows(mode="sam_fraction: FSDP2, 2 ranks = 1, plain loop", result="exact")
def test_fsdp2_equals_one_process(case: str, spec: Spec, ranks: Launcher) -> None:
    for results in ranks("cases_cheaper")[f"{case}-{spec}"]:
        for weights, reference in zip(results, expected(spec, Net(nn.PReLU)), strict=True):
            torch.testing.assert_close(weights, reference, **ROUNDING)


@pytest.mark.parametrize("case", ["ddp", "fsdp2"])
@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.shows(mode="sam_target_modules: {case}, 2 ranks = 1", brief="`sam_target_modules`: {case}", result="exact")
def test_some_parameters_are_perturbed_alone(case: str, spec: Spec, ranks: Launcher) -> None:
    model = Net() if case == "ddp" else Net(nn.PReLU)
    steps = joined("global", [rank_batches(rank, 4, 2) for rank in (0, 1)])
    expected = restricted(model.double(), ["last.weight", "last.bias"], spec, BASE, steps)
    for results in ranks("cases_cheaper")[f"{case}_targets-{spec}"]:
        for weights, reference in zip(results, expected, strict=True):
            torch.testing.assert_close(weights, reference["weights"], **ROUNDING)


@pytest.mark.usually("decoupled.*fsdp2")
@pytest.mark.parametrize("wrapper", ["fsdp2", "hsdp"])
@by_method
@pytest.mark.shows(
    mode="sam_fraction: {wrapper} (DistributedConfig) = DDP, Trainer",
    brief="`sam_fraction` under FSDP2 (`{wrapper}`)",
    result="exact",
)
def test_trainer_sharded_at_load_equals_ddp(wrapper: str, spec: Spec, ranks: Launcher) -> None:
    launched = ranks("cases_cheaper")
    for ours, ddp in zip(launched[f"llama_by-{wrapper}-{spec}"], launched[f"llama_by-ddp-{spec}"], strict=True):
        torch.testing.assert_close(torch.stack(ours["weights"]), torch.stack(ddp["weights"]), **ROUNDING)
        for a, b in zip(ours["log"], ddp["log"], strict=True):
            assert all(a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-6) for key in a | b)
