"""A surface leaves no trace, whatever a pass does and however it ends, and refuses what would not be exact."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from models import BUFFERED, Net, TinyLM, classification, collate, sentences
from surfaces import flat
from torch import nn
from torch.nn import functional as F

from hf_sharpness.measure.ball import sharpness, worst
from hf_sharpness.measure.batches import Batches, some_of
from hf_sharpness.measure.cheap import Settings, measures
from hf_sharpness.measure.critical import critical_sharpness
from hf_sharpness.measure.errors import MeasureError
from hf_sharpness.measure.surface import Surface, model_loss
from hf_sharpness.measure.updates import own_update


class Noisy(nn.Module):
    """Draws from every generator, counts and moves a buffer in each pass, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.rng = 0, np.random.default_rng(0)
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean += x.detach().mean(0)
        noise = self.rng.normal() + random.random() + np.random.rand() + float(torch.rand(()))
        return x * (1 + 0.1 * noise) + self.calls


def everything(model: nn.Module) -> list[Any]:
    noisy = next((m for m in model.modules() if isinstance(m, Noisy)), None)
    own = [noisy.calls, noisy.rng.bit_generator.state["state"]] if noisy else []
    tensors = [t.detach().clone() for t in [*model.parameters(), *model.buffers()]]
    grads = [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()]
    modes = [(m.training, p.requires_grad) for m in model.modules() for p in m.parameters(recurse=False)]
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    return [own, tensors, grads, modes, python, numpy, torch.get_rng_state()]


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def net(middle: Any) -> Net:
    model = Net(middle).double()
    model.first.eval()  # a mode of its own
    model(**collate(classification(4)))["loss"].backward()
    model.last.weight.grad = None
    return model


@pytest.mark.parametrize("middle", [Noisy, lambda: nn.Dropout(0.5), *BUFFERED.values()])
def test_everything_is_measured_and_nothing_has_changed(middle: Any) -> None:
    model = net(middle)
    batches = Batches(classification(20), collate, 8)
    before = everything(model)
    with Surface(model, batches) as surface:
        settings = Settings((0.1,), (0.5,), (0.1,), 3)
        found = dict(measures(surface, settings))
        again = dict(measures(surface, settings))
    assert_equal(everything(model), before)
    assert found == again  # every pass begins in the same state
    assert found["sharpness"][0]["loss"] != found["adaptive_sharpness"][0]["loss"]


def test_an_interrupt_at_any_batch_leaves_nothing_behind() -> None:
    model = net(Noisy)
    before = everything(model)
    calls, stop = 0, 0

    def loss_of(model: nn.Module, inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return model_loss(model, inputs)

    for last in range(1, 40):
        calls, stop = 0, last
        try:
            with Surface(model, Batches(classification(20), collate, 8), loss_of) as surface:
                loss, gradient = surface.gradient()
                sharpness(surface, loss, gradient, [0.1], adaptive=True)
                critical_sharpness(surface, loss, gradient, gradient)
                worst(surface, loss, gradient, 0.1, 2)
        except KeyboardInterrupt:
            assert_equal(everything(model), before)
        else:
            break
    assert last > 20
    assert_equal(everything(model), before)


def test_dropout_is_off() -> None:
    model, plain = Net(lambda: nn.Dropout(0.5)).double().train(), Net().double()
    batches = Batches(classification(20), collate, 8)
    with Surface(model, batches) as surface, Surface(plain, batches) as other:
        assert surface.gradient()[0] == other.gradient()[0]
    assert model.training


def test_the_error_is_the_share_of_wrong_classes() -> None:
    model = Net().double()
    items = classification(21)
    with Surface(model, Batches(items, collate, 8)) as surface:
        found = surface.evaluate()
    logits = model(torch.stack([item["x"] for item in items]))["logits"]
    labels = torch.stack([item["labels"] for item in items])
    assert found.error == float((logits.argmax(-1) != labels).double().mean())
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
    assert found.examples == 21


class TinyForCausalLM(TinyLM):
    """Its first label is predicted by nothing."""


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_tokens_count_alike_whatever_the_batches(size: int) -> None:
    model, items = TinyForCausalLM().double(), sentences(8)
    with Surface(model, Batches(items, collate, size)) as surface:
        loss, gradient = surface.gradient()
        assert surface.evaluate().error is None
    whole = model(**collate(items))["loss"]
    assert loss == pytest.approx(float(whole.detach()), rel=1e-12)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(whole, list(model.parameters()))])
    torch.testing.assert_close(flat(gradient), expected, rtol=1e-10, atol=1e-14)


def test_parameters_on_one_memory_are_moved_once() -> None:
    tied, untied = TinyForCausalLM(tied=True).double(), TinyForCausalLM().double()
    untied.head.weight = nn.Parameter(untied.embed.weight)  # another object, on the same memory
    found = []
    for model in (tied, untied):
        with Surface(model, Batches(sentences(8), collate, 4)) as surface:
            found.append(dict(measures(surface, Settings((0.1,), (), (0.1,), 2))))
    assert found[0]["sharpness"][0] == pytest.approx(found[1]["sharpness"][0], rel=1e-12)
    assert found[0]["gradient_norm"] == pytest.approx(found[1]["gradient_norm"], rel=1e-12)


def test_what_would_not_be_exact_is_refused() -> None:
    batches = Batches(classification(4), collate, 4)
    with pytest.raises(MeasureError, match=r"first\.weight is stored in torch\.bfloat16.*dtype=torch\.float32"):
        Surface(Net().bfloat16(), batches)
    with pytest.raises(MeasureError, match="no trainable parameter"):
        Surface(Net().requires_grad_(False), batches)
    with pytest.raises(MeasureError, match="empty"):
        Batches([], collate, 4)
    with (
        pytest.raises(MeasureError, match="returns no loss for a batch with x"),
        Surface(Net().double(), Batches([{"x": torch.zeros(6).double()}], collate, 1)) as surface,
    ):
        surface.loss()
    with pytest.raises(RuntimeError, match="with"):
        Surface(Net(), batches).loss()


def test_examples_are_drawn_by_the_seed_alone() -> None:
    assert some_of(10, None) == some_of(10, 10) == list(range(10))
    assert some_of(1000, 5, seed=3) == some_of(1000, 5, seed=3) != some_of(1000, 5, seed=4)
    assert len(set(some_of(1000, 999))) == 999


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_batches_out(world: int) -> None:
    items = classification(11)
    parts = [Batches(items, collate, 3, rank=rank, world=world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    counted = torch.cat([batch["x"] for part in parts for batch, counts in part if counts])
    assert sorted(map(tuple, counted.tolist())) == sorted(tuple(item["x"].tolist()) for item in items)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    "groups": lambda p: torch.optim.AdamW([{"params": p[:2]}, {"params": p[2:], "lr": 1e-4}], lr=1e-3),
    "tensor_lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01, dtype=torch.float64)),
}


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_own_update_is_the_optimizer_s_next_step(name: str, warm: int) -> None:
    """Against the step that a copy really makes of the same gradient; the optimizer itself goes on as if not asked."""
    items = classification(20)
    batches = Batches(items, collate, 8)

    def trained(steps: int, ask: bool) -> tuple[Net, torch.optim.Optimizer, list[Any]]:
        model = Net().double()
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        updates = []
        for _ in range(steps):
            if ask:
                with Surface(model, batches) as surface:
                    updates.append(flat(own_update(surface, optimizer, surface.gradient()[1])))
            model(**collate(items))["loss"].backward()
            before = flat(list(model.parameters())).detach().clone()
            optimizer.step()
            moved = before - flat(list(model.parameters())).detach()
            rate = max(float(group["lr"]) for group in optimizer.param_groups)
            if ask:
                torch.testing.assert_close(updates[-1] * rate, moved, rtol=1e-5, atol=1e-11 * rate + 1e-15)
            optimizer.zero_grad()
            scheduler.step()
        return model, optimizer, updates

    asked, its_optimizer, _ = trained(warm + 1, ask=True)
    plain, other, _ = trained(warm + 1, ask=False)
    assert_equal([p.detach() for p in asked.parameters()], [p.detach() for p in plain.parameters()])
    assert_equal(
        [sorted(s.items()) for s in its_optimizer.state_dict()["state"].values()],
        [sorted(s.items()) for s in other.state_dict()["state"].values()],
    )
