"""Gradients that are missing, zero, sparse or recomputed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import MaskRecorder, Net, Record, classification, steps_of
from reference import BASES, SPECS, Base, Spec, by_name, flat, reference_run
from torch import Tensor, nn

STEPS = steps_of(classification(32), 8, epochs=2)
ONE_OF_EACH = by_name("sam", "asam", "sam-k3", "wsam-coupled", "wsam-decoupled", "wsam-decoupled-k3", "xsam", "xsam-k3")
every_method = pytest.mark.parametrize("spec", ONE_OF_EACH, ids=str)


class Branching(nn.Module):
    """A net whose `sometimes` layer joins in certain forward passes of a step of `period` passes only."""

    def __init__(self, joins: set[int], period: int):
        super().__init__()
        self.net, self.sometimes = Net(), nn.Linear(6, 3)
        nn.init.constant_(self.sometimes.weight, 0.1)
        self.joins, self.period, self.record = joins, period, Record()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)["logits"]
        if self.record.forwards % self.period in self.joins:
            logits = logits + self.sometimes(x)
        self.record.forwards += 1
        return {"loss": nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize("joins", [{0}, {1}, {0, 1}], ids=["ascent only", "replay only", "both"])
@pytest.mark.parametrize(
    "spec",
    [
        *by_name("sam", "asam", "wsam-coupled", "wsam-decoupled"),
        Spec("xsam", "xsam", {"rho": 0.3, "alpha": 0.5}),
    ],
    ids=str,
)
def test_a_parameter_missing_in_one_pass(spec: Spec, joins: set[int], plain: Any) -> None:
    """No gradient counts as zero: the parameter is not climbed along, and always comes back."""
    model = Branching(joins, period=2).double()
    lrs = [0.1] * len(STEPS)
    reference = reference_run(model, STEPS, spec.reference(), Base("sgd", 0.1).reference(), lrs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = plain(model, STEPS, optimizer, spec.ours(model, optimizer))
    torch.testing.assert_close(weights[-1], reference[-1].weights, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("base", BASES, ids=str)
@every_method
def test_a_parameter_missing_in_every_pass(spec: Spec, base: Base, plain: Any) -> None:
    """As with the base optimizer alone it stays as it is, weight decay included."""
    model = Branching(joins=set(), period=1).double()
    before = flat(model.sometimes)
    optimizer = base.torch(model.parameters())
    plain(model, STEPS, optimizer, spec.ours(model, optimizer))
    assert torch.equal(flat(model.sometimes), before)
    assert set(optimizer.state) <= set(model.net.parameters())


@every_method
def test_a_step_without_any_gradient(spec: Spec, plain: Any) -> None:
    """Nothing trainable took part: the weights stay, nothing is NaN, the next step is an ordinary one."""
    model = Net().double()
    optimizer = BASES[2].torch(model.parameters())
    method, before = spec.ours(model, optimizer), flat(model)

    def closure() -> Tensor:
        loss = torch.ones((), dtype=torch.float64, requires_grad=True) * 3
        if torch.is_grad_enabled():
            loss.backward()
        return loss.detach()

    assert float(method.backward(closure)) == 3
    optimizer.step()
    assert torch.equal(flat(model), before)
    weights = plain(model, STEPS, optimizer, method)
    twin = Net().double()
    optimizer = BASES[2].torch(twin.parameters())
    assert torch.equal(weights[-1], plain(twin, STEPS, optimizer, spec.ours(twin, optimizer))[-1])


@pytest.mark.parametrize("base", BASES, ids=str)
@every_method
def test_a_zero_gradient(spec: Spec, base: Base, plain: Any) -> None:
    """Gradients of exactly zero: the same as the base optimizer alone, which still decays the weights."""

    class Flat(Net):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": 0.0 * super().forward(x, labels)["loss"]}

    runs = []
    for with_method in (True, False):
        model = Flat().double()
        optimizer = base.torch(model.parameters())
        runs.append(plain(model, STEPS, optimizer, spec.ours(model, optimizer) if with_method else None))
    assert torch.equal(runs[0][-1], runs[1][-1])


@every_method
def test_gradient_checkpointing(spec: Spec, plain: Any) -> None:
    """Recomputed activations, dropout included, change nothing."""
    runs = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = Net(nn.Dropout, checkpointing=checkpointing).double()
        optimizer = BASES[2].torch(model.parameters())
        runs.append(plain(model, STEPS, optimizer, spec.ours(model, optimizer)))
    assert torch.equal(runs[0][-1], runs[1][-1])


@every_method
def test_sparse_gradients_are_refused(spec: Spec) -> None:
    """A clear error, and the weights as they were."""
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = flat(model)

    def closure() -> Tensor:
        loss = model(torch.tensor([1, 2])).pow(2).mean()
        loss.backward()
        return loss

    with pytest.raises(
        (ValueError, RuntimeError, NotImplementedError, TypeError), match=r"(?i)sparse.*(sparse=False|dense)"
    ):
        spec.ours(model, optimizer).backward(closure)
    assert torch.equal(flat(model), before)


@every_method
def test_the_loss_returned_is_the_clean_one(spec: Spec) -> None:
    model = Net().double()
    optimizer = BASES[0].torch(model.parameters())
    clean = model(**STEPS[0][0])["loss"].item()

    def closure() -> Tensor:
        loss = model(**STEPS[0][0])["loss"]
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    loss = spec.ours(model, optimizer).backward(closure)
    assert float(loss) == clean
    assert not loss.requires_grad


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_gradient_per_pass(spec: Spec, plain: Any) -> None:
    """k + 1 passes forward and backward, and where XSAM searches 21 probes of the grid, or 8 at most: no more."""
    model = Net(MaskRecorder).double()
    optimizer = BASES[0].torch(model.parameters())
    plain(model, STEPS[:1], optimizer, spec.ours(model, optimizer))
    settings = spec.settings
    probes = len(model.middle.masks) - settings.get("steps", 1) - 1
    if spec.method == "xsam" and "alpha" not in settings:
        assert 5 < probes <= 8
    else:
        assert probes == 0
