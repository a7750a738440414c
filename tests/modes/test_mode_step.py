"""What Step offers to methods of one's own, on two gloo ranks: DDP, FSDP2 and HSDP, against a float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from launch import Ranks
from models import Net
from own_methods import Everything
from reference import SGD, Sam, reference_run
from reference.methods import Handed, Plain
from reference.run import Problem
from specs_of_modes import BASE, MAX_NORM, joined, rank_batches
from torch import Tensor, nn

from hf_sharpness.loop import SharpnessAware

Launcher = Callable[[str], Ranks]
MODELS = ["ddp", "bucket_view", "fsdp2", "hsdp"]


class EverythingOnOneVector:
    """``Everything`` on a flat float64 vector, with the directions that were drawn."""

    def __init__(self, directions: list[Tensor], base: SGD):
        self.directions, self.base = directions, base
        self.number, self.average = 0, torch.zeros_like(directions[0])

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        loss, g = problem.gradient(w)
        d = self.directions[self.number]
        _, g_s = problem.gradient(w + 0.2 * (1 - self.number / len(self.directions)) * d / d.norm())
        self.average = 0.9 * self.average + 0.1 * g
        h = g_s - (g @ g_s) / (g @ g) * g + self.average
        if self.base.velocity is not None:
            h = h + 0.1 * self.base.velocity
        self.number += 1
        return Handed(h, None, loss)


@pytest.mark.parametrize("model", MODELS)
def test_everything_is_exact_on_two_ranks(model: str, ranks: Launcher) -> None:
    first, second = ranks("cases_step")[f"everything-{model}"]
    base = BASE.reference()
    steps = joined("global", [rank_batches(rank, 5, 2) for rank in (0, 1)])
    method = EverythingOnOneVector(first["directions"], base)
    records = reference_run(Net(nn.PReLU), steps, method, base, [BASE.lr] * 5, MAX_NORM)
    for ours, others, record in zip(first["weights"], second["weights"], records, strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours, record.weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_directions_do_not_depend_on_the_number_of_ranks(model: str, ranks: Launcher) -> None:
    """One vector for all ranks, of which shards are the shards; the largest of the ranks' seeds makes it."""
    torch.manual_seed(7)
    network = Net(nn.PReLU).double()
    method = SharpnessAware(Everything(), network, BASE.torch(network.parameters()), total_steps=5)
    batch = rank_batches(0, 1, 1)[0][0]

    def closure() -> Tensor:
        loss = network(**batch)["loss"]
        loss.backward()
        return loss.detach()

    for _ in range(2):
        method.backward(closure)
    alone = [torch.cat([t.reshape(-1) for t in d]) for d in method.method.directions]
    for result in ranks("cases_step")[f"everything-{model}"]:
        assert all(torch.equal(a, b) for a, b in zip(alone, result["directions"], strict=False))
        assert len({float(d[0]) for d in result["directions"]}) == 5


@pytest.mark.parametrize("model", MODELS)
def test_resuming_is_bit_for_bit(model: str, ranks: Launcher) -> None:
    for result in ranks("cases_step")[f"resumed-{model}"]:
        assert torch.equal(result["through"], result["resumed"])


@pytest.mark.parametrize("model", MODELS)
def test_another_number_of_ranks_starts_anew_and_says_so(model: str, ranks: Launcher) -> None:
    file = ranks("cases_step")[f"resumed-{model}"][0]["file"]
    network = Net(nn.PReLU).double()
    method = SharpnessAware(Everything(), network, BASE.torch(network.parameters()))
    with pytest.warns(UserWarning, match=r"\(average\) starts anew.*saved on 2 ranks.*this is 1 rank"):
        method.load_state_dict(torch.load(file, weights_only=True))


class EveryOtherOnOneVector:
    def __init__(self, scope: str):
        self.turns = [Plain(), Sam(rho=0.2, scope=scope)]
        self.number = -1

    def __call__(self, problem: Problem, w: Tensor, refresh: bool) -> Handed:
        self.number += 1
        return self.turns[self.number % 2](problem, w, refresh)


@pytest.mark.parametrize("scope", ["global", "device", "micro_batch"])
def test_passes_decided_per_step(scope: str, ranks: Launcher) -> None:
    """Also where the last replay alone would have averaged the gradient over ranks."""
    first, second = ranks("cases_step")[f"every_other-{scope}"]
    steps = joined(scope, [rank_batches(rank, 6, 2) for rank in (0, 1)])
    method = EveryOtherOnOneVector("global" if scope == "global" else "micro_batch")
    records = reference_run(Net(), steps, method, BASE.reference(), [BASE.lr] * 6, MAX_NORM)
    for ours, others, record in zip(first, second, records, strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours, record.weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scope", ["global", "device"])
@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("ranks differ", "ValueError: the method 'unsteady' announced {0} further passes of this step here"),
        ("nonsense on one", "ValueError: the method 'unsteady' announced"),
        ("one more", "RuntimeError: the method 'unsteady' makes more than the 1 further"),
        ("one less", "RuntimeError: the method 'unsteady' makes 1 instead of the 2 further"),
        ("none", "RuntimeError: the method 'unsteady' makes 0 instead of the 1 further"),
    ],
)
def test_a_method_that_breaks_its_word_is_stopped_on_every_rank(
    scope: str, case: str, error: str, ranks: Launcher
) -> None:
    for rank, result in enumerate(ranks("cases_step")[f"unsteady-{scope}-{case}"]):
        assert result["error"].startswith(error.format(rank + 1))
        assert result["clean"]


def test_ranks_that_climb_alone_draw_alone(ranks: Launcher) -> None:
    launched = ranks("cases_step")
    assert torch.equal(*launched["drawn-global"])
    assert not torch.equal(*launched["drawn-device"])


def test_a_rank_does_not_take_over_the_shards_of_another(ranks: Launcher) -> None:
    """As when one process saves for all of them: sharded, both start anew; replicated, it is all the same."""
    launched = ranks("cases_step")
    first, second = launched["swapped-fsdp2"]
    assert "another rank could not take over its own" in first[0]
    assert "saved on 2 ranks (shard 0" in second[0]
    assert launched["swapped-ddp"] == [[], []]
