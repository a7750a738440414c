"""DDP and FSDP2 on two real gloo ranks: gradients that are there already, compressed, unused, or of fewer ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from launch import Ranks
from reference import Spec
from specs_of_modes import METHODS, SCOPED

Launcher = Callable[[str], Ranks]
ROUNDING = {"rtol": 0, "atol": 1e-10}
MODULE = "cases_gradients"
LR = 0.1
by_scope = pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in SCOPED], ids=str)
GLOBAL = [s for s in SCOPED if s.settings["scope"] == "global"]
DEVICE = [s for s in SCOPED if s.settings["scope"] == "device"]


@pytest.mark.parametrize("views", ["plain", "views"])
@pytest.mark.parametrize("kind", ["reduced", "own"])
@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, a gradient in p.grad when a step begins", result="exact")
def test_ddp_earlier_gradients(scope: str, spec: Spec, kind: str, views: str, ranks: Launcher) -> None:
    """Reduced or each rank's own: its mean over the ranks is added to the method's gradient."""
    results = ranks(MODULE)[f"earlier-{kind}-{views}-{spec}"]
    for with_memory, without, memory in results:
        torch.testing.assert_close(with_memory, without - LR * memory, **ROUNDING)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("spec", GLOBAL, ids=str)
def test_ddp_one_call_for_each_micro_batch(spec: Spec, ranks: Launcher) -> None:
    """As `accelerator.accumulate()` has it: at rho 0 stock's step; replicas stay equal whatever rho is."""
    first, second = ranks(MODULE)[f"one_call_for_each-0.0-{spec}"]
    torch.testing.assert_close(first[0], first[1], **ROUNDING)
    torch.testing.assert_close(second[0], first[0], **ROUNDING)
    first, second = ranks(MODULE)[f"one_call_for_each-0.2-{spec}"]
    assert torch.equal(first[0], second[0])


def test_fsdp2_unreduced_gradients_are_refused(ranks: Launcher) -> None:
    for message in ranks(MODULE)["unreduced_fsdp2"]:
        assert "has not reduced over ranks" in message


COMPRESSED = [*GLOBAL, *(s for s in DEVICE if s.settings.get("mode") != "decoupled")]  # that one averages by itself


@pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in COMPRESSED], ids=str)
@pytest.mark.shows(mode="DDP, scope {scope}, PowerSGD: rho 0 = stock", result="exact")
def test_ddp_hooks_with_a_memory_count_one_pass(scope: str, spec: Spec, ranks: Launcher) -> None:
    for ours, stock in ranks(MODULE)[f"power_sgd_at_rho_0-{spec}"]:
        torch.testing.assert_close(ours, stock, **ROUNDING)


def test_ddp_power_sgd_compresses_both_passes_from_the_same_memory(ranks: Launcher) -> None:
    for ours, by_hand in ranks(MODULE)["power_sgd_by_hand"]:
        torch.testing.assert_close(ours, by_hand, **ROUNDING)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("spec", DEVICE, ids=str)
@pytest.mark.shows(mode="DDP, scope device, unused parameters that depend on data, accumulation", result="exact")
def test_ddp_routing_that_depends_on_data(spec: Spec, accumulation: int, ranks: Launcher) -> None:
    first, second = ranks(MODULE)[f"routing-{accumulation}-{spec}"]
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], first[1], **ROUNDING)


IN_JOIN = [s for s in SCOPED if s.name in ("global-sam", "global-wsam-coupled", "global-wsam-decoupled")]
IN_JOIN += [s for s in DEVICE if s.settings.get("mode") != "decoupled"]
NOT_IN_JOIN = [s for s in SCOPED if s not in IN_JOIN]


@pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in IN_JOIN], ids=str)
@pytest.mark.shows(mode="DDP in `Join`, scope {scope}: rho 0 = stock", result="exact")
def test_ddp_join(scope: str, spec: Spec, ranks: Launcher) -> None:
    for error, ours, stock_error, stock in ranks(MODULE)[f"join-{spec}"]:
        assert error == stock_error == ""
        torch.testing.assert_close(ours, stock, **ROUNDING)


@pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in NOT_IN_JOIN], ids=str)
@pytest.mark.shows(mode="DDP in `Join`, scope {scope}: rho 0 = stock", result="refused")
def test_ddp_join_is_refused(scope: str, spec: Spec, ranks: Launcher) -> None:
    """What communicates by itself, before the ranks that have ended and the others would wait for each other."""
    assert all("torch.distributed.algorithms.Join" in result[0] for result in ranks(MODULE)[f"join-{spec}"])


def test_all_methods_are_here() -> None:
    assert len(GLOBAL) == len(METHODS)
