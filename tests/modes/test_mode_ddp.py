"""DistributedDataParallel on two real gloo ranks: every scope against a single process, by loop and by Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Ranks
from models import Batch, Net, TinyLM, classification, steps_of
from reference import Base, Spec, by_name, reference_run, token_losses
from specs_of_modes import (
    ADAM,
    BASE,
    MAX_NORM,
    METHODS,
    PRECONDITIONED,
    SCOPED,
    SCOPED_BETWEEN,
    Branching,
    assert_third_step_skipped,
    joined,
    named,
    rank_batches,
    reference_of,
    scoped,
    token_items,
    without_decay,
)
from torch import Tensor, nn

from hf_sharpness import TrainingArguments

Launcher = Callable[[str], Ranks]
ROUNDING = {"rtol": 0, "atol": 1e-9}
by_scope = pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in SCOPED], ids=str)


def expected(
    spec: Spec, by_rank: Sequence[list[list[Batch]]], model: nn.Module | None = None, base: Base = BASE
) -> list[Tensor]:
    """The weights after every step by the float64 reference, which knows no ranks."""
    steps = joined(spec.settings["scope"], by_rank)
    records = reference_run(
        model or Net(), steps, reference_of(spec), base.reference(), [base.lr] * len(steps), MAX_NORM
    )
    return [record.weights for record in records]


def assert_replicas_follow(results: Sequence[list[Tensor]], weights: Sequence[Tensor]) -> None:
    for first, second, reference in zip(*results, weights, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, reference, **ROUNDING)


@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, 2 ranks = 1, plain loop", result="exact")
def test_ddp_equals_one_process(scope: str, spec: Spec, ranks: Launcher) -> None:
    """`global`: one batch of 16; `device` and `micro_batch`: every part climbing alone."""
    results = ranks("cases_ddp")[f"ddp-{spec}"]
    assert_replicas_follow(results, expected(spec, [rank_batches(rank, 5, 2) for rank in (0, 1)]))


@pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in SCOPED_BETWEEN], ids=str)
@pytest.mark.shows(mode="DDP, scope {scope}, steps 2 and 3 of 5, plain loop", result="exact")
def test_ddp_in_some_steps(scope: str, spec: Spec, ranks: Launcher) -> None:
    """Those before and after are DDP's own: one reduction, whatever the scope; also with gradients in its buckets."""
    weights = expected(spec, [rank_batches(rank, 5, 2) for rank in (0, 1)])
    assert_replicas_follow(ranks("cases_ddp")[f"ddp-{spec}"], weights)
    if scope == "global":
        assert_replicas_follow(ranks("cases_ddp")[f"bucket_view-{spec}"], weights)


@pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in PRECONDITIONED], ids=str)
@pytest.mark.shows(
    mode="DDP, scope {scope}, 2 ranks = 1, AdamW, term preconditioned", method="WSAM decoupled", result="exact"
)
def test_ddp_around_adamw_equals_one_process(scope: str, spec: Spec, ranks: Launcher) -> None:
    """The preconditioner is that of the averaged gradients, the same on every rank."""
    by_rank = [rank_batches(rank, 5, 2) for rank in (0, 1)]
    assert_replicas_follow(ranks("cases_ddp")[f"adam-{spec}"], expected(spec, by_rank, Net(nn.PReLU), ADAM))


@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, 2 ranks = 1, Trainer", brief="DDP, scope {scope}", result="exact")
def test_ddp_trainer_equals_one_process(scope: str, spec: Spec, ranks: Launcher) -> None:
    """With gradient accumulation, clipping and momentum; every rank logs the same numbers."""
    first, second = ranks("cases_trainer")[f"ddp-{spec}"]
    weights = expected(spec, [rank_batches(rank, 5, 2) for rank in (0, 1)], base=without_decay(BASE))
    assert_replicas_follow([first["weights"], second["weights"]], weights)
    keys = ("loss", "perturbed_loss", "sharpness", "ascent_grad_norm", "perturbation_norm")
    assert all(key in entry for entry in first["log"] for key in keys)


@pytest.mark.parametrize("scope", ["device", "micro_batch"])
@pytest.mark.shows(mode="DDP, scope {scope}, 2 ranks = 1, plain loop", method="XSAM", result="refused")
@pytest.mark.shows(
    mode="DDP, scope {scope}, 2 ranks = 1, Trainer", brief="DDP, scope {scope}", method="XSAM", result="refused"
)
def test_xsam_is_global(scope: str, tmp_path: Path) -> None:
    """One plane and one alpha for all ranks: by its definition."""
    network = Net()
    with pytest.raises(ValueError, match="scope='global'"):
        scoped(named("xsam"), scope).ours(network, BASE.torch(network.parameters()))
    with pytest.raises(ValueError, match="sam_scope='global'"):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim="xsam", sam_scope=scope)


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.shows(mode="DDP, token counts that differ between ranks", result="exact")
def test_ddp_trainer_counts_tokens_over_ranks(spec: Spec, ranks: Launcher) -> None:
    results = [result["weights"] for result in ranks("cases_trainer")[f"tokens-{spec}"]]
    steps = steps_of(token_items(), 4, 4)
    base = without_decay(BASE).reference()
    records = reference_run(TinyLM(), steps, spec.reference(), base, [BASE.lr] * 5, MAX_NORM, losses=token_losses)
    assert_replicas_follow(results, [record.weights for record in records])


@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, gradient_as_bucket_view", result="exact")
def test_ddp_gradients_as_bucket_views(scope: str, spec: Spec, ranks: Launcher) -> None:
    """Gradients that are views of the communication buckets are not overwritten while the method needs them."""
    results = ranks("cases_ddp")[f"bucket_view-{spec}"]
    assert_replicas_follow(results, expected(spec, [rank_batches(rank, 5, 2) for rank in (0, 1)]))


@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, ranks with different batch sizes", result="exact")
def test_ddp_uneven_batches(scope: str, spec: Spec, ranks: Launcher) -> None:
    """As in stock DDP a rank's mean loss counts as much as another's, whatever its number of items."""
    results = ranks("cases_ddp")[f"uneven-{spec}"]
    alone = scoped(spec, "global" if scope == "global" else "micro_batch")
    assert_replicas_follow(results, expected(alone, [rank_batches(rank, 5, 1, size=8 - 5 * rank) for rank in (0, 1)]))


@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, unused parameters", brief="DDP, scope {scope}", result="exact")
def test_ddp_unused_parameters(scope: str, spec: Spec, ranks: Launcher) -> None:
    """A layer that no rank uses, and later one rank alone."""
    by_rank = [rank_batches(rank, 6, 1) for rank in (0, 1)]
    for rank, steps in enumerate(by_rank):
        for number, (batch,) in enumerate(steps):
            batch["branch"] = torch.tensor(rank == 1 and number >= 3)
    alone = scoped(spec, "global" if scope == "global" else "micro_batch")
    weights = expected(alone, by_rank, Branching(), without_decay(BASE))
    assert_replicas_follow(ranks("cases_ddp")[f"unused-{spec}"], weights)


@pytest.mark.parametrize("name", ["global-sam", "device-wsam-coupled", "global-wsam-decoupled", "global-xsam"])
def test_ddp_compiled(name: str, ranks: Launcher) -> None:
    """torch.compile around DDP (aot_eager): the engine finds the DDP module within."""
    spec = named(name)
    assert_replicas_follow(
        ranks("cases_ddp")[f"compiled-{name}"], expected(spec, [rank_batches(rank, 5, 1) for rank in (0, 1)])
    )


@pytest.mark.parametrize(
    ("scope", "spec"),
    [(s.settings["scope"], s) for s in SCOPED],
    ids=str,
)
def test_ddp_static_graph_works_or_is_refused(scope: str, spec: Spec, ranks: Launcher) -> None:
    """Two passes over one graph are what `static_graph` allows; a first backward under no_sync is not."""
    results = ranks("cases_ddp")[f"static_graph-{spec}"]
    if scope == "global":
        assert_replicas_follow(results, expected(spec, [rank_batches(rank, 5, 1) for rank in (0, 1)]))
    else:
        assert all("static_graph" in text for text in results)


@by_scope
def test_ddp_replicas_stay_equal(scope: str, spec: Spec, ranks: Launcher) -> None:
    """Bit for bit, in float32 with AdamW; the long run is in test_mode_soak.py."""
    first, second = ranks("cases_ddp")[f"replicas-{spec}"]
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "xsam"), ids=str)
@pytest.mark.shows(mode="DDP with weights stored in bf16: replicas equal", result="exact")
def test_ddp_replicas_with_bf16_weights_stay_equal(spec: Spec, ranks: Launcher) -> None:
    """Though every rank rounds its perturbed weights by random numbers of its own."""
    first, second = ranks("cases_trainer")[f"bf16_weights-{spec}"]
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("spec", METHODS, ids=str)
@pytest.mark.shows(mode="DDP with bf16 autocast: replicas equal", result="exact")
def test_ddp_bf16_replicas_stay_equal(spec: Spec, ranks: Launcher) -> None:
    first, second = ranks("cases_trainer")[f"bf16-{spec}"]
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("spec", [named("sam"), named("wsam-decoupled")], ids=str)
@pytest.mark.shows(mode="DDP, rho 0 = stock Trainer, dropout and BatchNorm", result="exact")
def test_ddp_rho_0_is_stock(spec: Spec, ranks: Launcher) -> None:
    """Every rank, bit for bit: weights, buffers and the loss that is logged."""
    launched = ranks("cases_trainer")
    for stock, ours in zip(launched["rho_0-stock"], launched[f"rho_0-{spec}"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(stock["weights"], ours["weights"], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(stock["buffers"], ours["buffers"], strict=True))
        assert [entry["loss"] for entry in stock["log"]] == [entry["loss"] for entry in ours["log"]]


COLLECTIVES = {"sam": 1, "wsam-coupled": 1}


@pytest.mark.parametrize(("module", "case"), [("cases_ddp", "all_reduces"), ("cases_trainer", "trainer_collectives")])
@pytest.mark.parametrize("spec", [scoped(named(name), "device") for name in COLLECTIVES], ids=str)
@pytest.mark.shows(mode="DDP, scope device: all-reduces of a step = stock", result="exact")
def test_ddp_device_scope_communicates_as_stock(spec: Spec, module: str, case: str, ranks: Launcher) -> None:
    """Counted by gloo itself, with several gradient buckets and with accumulation."""
    launched = ranks(module)
    assert launched[f"{case}-{spec}"] == launched[f"{case}-stock"]


@by_scope
def test_ddp_communicates_no_more_than_needed(scope: str, spec: Spec, ranks: Launcher) -> None:
    """Two buckets a step in stock DDP: twice that for `global`; where the engine averages itself one flat all-reduce
    (two for decoupled WSAM) and one for which parameters were used."""
    if spec.method == "xsam":
        pytest.skip("XSAM adds one for its search")
    launched = ranks("cases_ddp")
    stock, ours = launched["all_reduces-stock"], launched[f"all_reduces-{spec}"]
    assert stock == [4, 4]
    decoupled = spec.settings.get("mode") == "decoupled"
    needed = {"global": 8, "device": 6 if decoupled else 4, "micro_batch": 6 if decoupled else 4}[scope]
    assert ours == [needed, needed]


@pytest.mark.parametrize("where", ["ascent", "replay", "both"])
@by_scope
@pytest.mark.shows(
    mode="DDP, scope {scope}, fp16 overflow on one rank only",
    brief="DDP, scope {scope}: fp16 overflow on one rank",
    result="skipped as stock",
)
def test_ddp_overflow_on_one_rank(scope: str, spec: Spec, where: str, ranks: Launcher) -> None:
    """A real GradScaler: no deadlock, both ranks skip that step and only that, both halve the scale once."""
    first, second = ranks("cases_ddp")[f"overflow-{where}-{spec}"]
    for key in ("weights", "moments"):
        assert all(torch.equal(a, b) for a, b in zip(first[key], second[key], strict=True))
    assert_third_step_skipped(first, second)


@by_scope
@pytest.mark.shows(mode="DDP, scope {scope}, NaN on one rank only, no scaler", result="clean")
def test_ddp_not_a_number_on_one_rank(scope: str, spec: Spec, ranks: Launcher) -> None:
    """As in stock DDP it reaches every rank: none goes on alone, none waits."""
    first, second = ranks("cases_ddp")[f"not_a_number-{spec}"]
    assert torch.equal(first.isnan(), second.isnan())
    assert first.isnan().all()


def test_the_reference_sees_the_ranks_data() -> None:
    """Guards the tests above: the two ranks' batches are the sequential ones, dealt in turn."""
    one = steps_of(classification(80, seed=5), 4, 1)
    dealt = [rank_batches(rank, 10, 1) for rank in (0, 1)]
    for number, (batch,) in enumerate(one):
        assert torch.equal(batch["x"], dealt[number % 2][number // 2][0]["x"])


def test_a_failing_rank_fails_its_test(ranks: Launcher) -> None:
    """A case that does not exist, or that raised, is no silent pass."""
    results: Any = ranks("cases_ddp")
    with pytest.raises(pytest.fail.Exception, match="never finished"):
        results["no such case"]
