"""The plain PyTorch loop against the float64 references: every method, every base, schedule, clipping, groups."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from models import Net, TinyLM, accumulate, classification, sentences, steps_of
from reference import (
    BASES,
    SGD,
    SPECS,
    Base,
    Sam,
    Spec,
    by_name,
    flat,
    linear_schedule,
    mean_losses,
    reference_run,
)
from torch import nn

STEPS = steps_of(classification(64), 8, epochs=4)
EPOCHS = range(0, len(STEPS), 8)
FACTORS = linear_schedule(1.0, 3, len(STEPS))
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def expected(model: nn.Module, spec: Spec, base: Base, steps: Any = STEPS, **options: Any) -> torch.Tensor:
    lrs = [base.lr * factor for factor in FACTORS]
    options = {"max_norm": 0.5, "epoch_starts": EPOCHS} | options
    records = reference_run(model, steps, spec.reference(), base.reference(), lrs, **options)
    return torch.stack([record.weights for record in records])


@pytest.mark.usually("adamw|^(sam|wsam-decoupled|xsam)-sgd-momentum")
@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_method_on_every_base(spec: Spec, base: Base, plain: Any) -> None:
    model = Net().double()
    reference = expected(model, spec, base)
    optimizer = base.torch(model.parameters())
    weights = plain(model, STEPS, optimizer, spec.ours(model, optimizer), FACTORS, 0.5, EPOCHS)
    torch.testing.assert_close(torch.stack(weights), reference, **EXACT)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3"), ids=str)
def test_accumulation_is_the_whole_batch(spec: Spec, plain: Any) -> None:
    base, items = BASES[2], classification(32 * 5 + 16)
    whole, split = steps_of(items, 32), steps_of(items, 8, accumulation=4)
    whole[-1:] = steps_of(items[-16:], 16)  # the last step has two micro-batches only
    model = Net().double()
    reference = expected(model, spec, base, whole, epoch_starts=(0,))
    optimizer = base.torch(model.parameters())
    weights = plain(model, split, optimizer, spec.ours(model, optimizer), FACTORS, 0.5)
    torch.testing.assert_close(torch.stack(weights), reference, **EXACT)


@pytest.mark.parametrize("scope", ["global", "micro_batch"])
@pytest.mark.parametrize("name", ["sam", "asam-k2", "wsam-coupled", "wsam-decoupled"])
def test_a_closure_for_each_micro_batch(name: str, scope: str) -> None:
    """`backward` takes them as a list; with scope="micro_batch" each climbs by its own gradient."""
    (spec,) = by_name(name)
    spec = Spec(name, spec.method, spec.settings | {"scope": scope})
    base, model, steps = BASES[1], Net().double(), steps_of(classification(64), 8, accumulation=4, epochs=3)
    reference = expected(model, spec, base, steps, max_norm=None, epoch_starts=(0,))
    optimizer = base.torch(model.parameters())
    method = spec.ours(model, optimizer)
    for factor, step in zip(FACTORS, steps, strict=False):
        optimizer.param_groups[0]["lr"] = base.lr * factor
        optimizer.zero_grad()
        closures = [functools.partial(accumulate, model, batch, len(step)) for batch in step]
        loss = method.backward(closures)
        assert float(loss) == pytest.approx(sum(mean_losses(model, step)).item())
        optimizer.step()
    torch.testing.assert_close(flat(model), reference[-1], **EXACT)


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_several_groups(spec: Spec, base: Base, plain: Any) -> None:
    """Every group has its own learning rate and weight decay, and there is one norm for all of them."""
    model = Net().double()
    sizes = [parameter.numel() for parameter in model.parameters()]
    lr_factors, decays = (1.0, 0.3, 2.0, 0.5), (0.0, 0.1, 0.05, 0.2)
    per_element = [
        torch.tensor(v, dtype=torch.float64).repeat_interleave(torch.tensor(sizes)) for v in (lr_factors, decays)
    ]
    records = reference_run(
        model,
        STEPS,
        spec.reference(),
        base.reference(per_element[1]),
        [base.lr * factor * per_element[0] for factor in FACTORS],
        max_norm=0.5,
    )
    groups = [
        {"params": [parameter], "lr": base.lr * factor, "weight_decay": decay}
        for parameter, factor, decay in zip(model.parameters(), lr_factors, decays, strict=True)
    ]
    optimizer = base.torch(groups)
    weights = plain(model, STEPS, optimizer, spec.ours(model, optimizer), FACTORS, 0.5)
    torch.testing.assert_close(weights[-1], records[-1].weights, **EXACT)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("spec", by_name("sam", "wsam-decoupled"), ids=str)
def test_implementations_of_the_base(spec: Spec, options: dict[str, bool], plain: Any) -> None:
    model = Net().double()
    optimizer = BASES[2].torch(model.parameters(), **options)
    reference = expected(model, spec, BASES[2], STEPS[:8])
    weights = plain(model, STEPS[:8], optimizer, spec.ours(model, optimizer), FACTORS, 0.5)
    torch.testing.assert_close(torch.stack(weights), reference, **EXACT)


@pytest.mark.parametrize("spec", by_name("asam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_frozen_parameters(spec: Spec, plain: Any) -> None:
    model = Net().double()
    model.first.weight.requires_grad_(False)
    frozen, reference = model.first.weight.clone(), expected(model, spec, BASES[1], max_norm=None)
    optimizer = BASES[1].torch(model.parameters())
    weights = plain(model, STEPS, optimizer, spec.ours(model, optimizer), FACTORS, None, EPOCHS)
    torch.testing.assert_close(torch.stack(weights), reference, **EXACT)
    assert torch.equal(model.first.weight, frozen)


@pytest.mark.parametrize("spec", by_name("asam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_tied_weights(spec: Spec, plain: Any) -> None:
    """A tied weight is one parameter: perturbed once, counted once in the norm."""
    steps, model = steps_of(sentences(32), 8, epochs=2), TinyLM(tied=True).double()
    reference = expected(model, spec, BASES[0], steps, epoch_starts=(0,))
    optimizer = BASES[0].torch(model.parameters())
    weights = plain(model, steps, optimizer, spec.ours(model, optimizer), FACTORS, 0.5)
    torch.testing.assert_close(torch.stack(weights), reference, **EXACT)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_parameters_outside_the_optimizer_stay(spec: Spec, plain: Any) -> None:
    """Only what the optimizer trains is perturbed and counted."""
    model, twin = Net().double(), Net().double()
    twin.first.requires_grad_(False)
    reference = expected(twin, spec, BASES[0], max_norm=None)
    before = flat(model.first)
    optimizer = BASES[0].torch(model.last.parameters())
    plain(model, STEPS, optimizer, spec.ours(model, optimizer), FACTORS, None, EPOCHS)
    torch.testing.assert_close(flat(model.last), reference[-1], **EXACT)
    assert torch.equal(flat(model.first), before)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_gradients_outside_the_optimizer_are_those_of_one_pass(spec: Spec) -> None:
    """Whoever clips or steps them himself finds what `loss.backward()` leaves."""
    model, twin = Net().double(), Net().double()
    optimizer = BASES[0].torch(model.last.parameters())
    spec.ours(model, optimizer).backward(lambda: accumulate(model, STEPS[0][0], 1))
    accumulate(twin, STEPS[0][0], 1)
    assert torch.equal(model.first.weight.grad, twin.first.weight.grad)


@pytest.mark.parametrize("output", ["dict", "tuple"])
def test_defaults_are_the_papers(output: str, plain: Any) -> None:
    model = Net(output=output).double()
    reference = reference_run(Net(), STEPS, Sam(rho=0.05), SGD(), [0.2] * len(STEPS))
    optimizer = BASES[0].torch(model.parameters())
    weights = plain(model, STEPS, optimizer, Spec("sam", "sam").ours(model, optimizer))
    torch.testing.assert_close(weights[-1], reference[-1].weights, **EXACT)


AUTO = {
    "sgd": (BASES[0], {"mode": "coupled", "gamma": 0.6}),
    "momentum": (BASES[1], {"mode": "decoupled", "gamma": 0.9}),
    "adamw": (BASES[2], {"mode": "coupled", "gamma": 0.6}),
}


@pytest.mark.parametrize(("base", "settings"), AUTO.values(), ids=AUTO)
def test_wsam_mode_follows_the_base(base: Base, settings: dict[str, Any], plain: Any) -> None:
    """`auto`: decoupled, gamma .9, on SGD with momentum; coupled, gamma .6, without it and on an adaptive base."""
    model = Net().double()
    reference = expected(model, Spec("wsam", "wsam", {"rho": 0.05} | settings), base)
    optimizer = base.torch(model.parameters())
    weights = plain(model, STEPS, optimizer, Spec("wsam", "wsam").ours(model, optimizer), FACTORS, 0.5)
    torch.testing.assert_close(torch.stack(weights), reference, **EXACT)


BACKWARDS = {
    "tensor": lambda accelerator, loss: loss.backward(),
    "autograd": lambda accelerator, loss: torch.autograd.backward(loss),
    "accelerate": lambda accelerator, loss: accelerator.backward(loss),
}


@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_accelerate(spec: Spec, backward: Any) -> None:
    """A prepared model, optimizer and scheduler, whichever way the closure runs backward."""
    base, model = BASES[1], Net().double()
    reference = expected(model, spec, base, STEPS[:8], epoch_starts=(0,))
    accelerator = Accelerator(cpu=True)
    optimizer = base.torch(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: FACTORS[step])
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    method = spec.ours(model, optimizer)
    for (batch,) in STEPS[:8]:

        def closure(batch: Any = batch) -> torch.Tensor:
            loss = model(**batch)["loss"]
            backward(accelerator, loss)
            return loss

        method.backward(closure)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    torch.testing.assert_close(flat(model), reference[-1], **EXACT)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_autocast_inside_or_around_the_closure(spec: Spec) -> None:
    """Autocast keeps the low-precision copies of weights it made: none may outlive a perturbation."""
    inside, around = [nullcontext, bf16], [bf16, nullcontext]
    runs = []
    for outer, inner in (inside, around):
        model = Net()
        optimizer = BASES[0].torch(model.parameters())
        method = spec.ours(model, optimizer)
        for (batch,) in steps_of(classification(32, torch.float32), 8):

            def closure(model: Net = model, batch: Any = batch, inner: Any = inner) -> torch.Tensor:
                with inner():
                    loss = model(**batch)["loss"]
                if torch.is_grad_enabled():
                    loss.backward()
                return loss.detach()

            with outer():
                method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(flat(model))
    assert torch.equal(*runs)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("spec", by_name("wsam-decoupled", "xsam", "xsam-by-steps"), ids=str)
def test_state_dict_continues(spec: Spec, plain: Any) -> None:
    """Model, optimizer and method saved after 11 steps and loaded into fresh ones go on bit for bit."""

    def fresh() -> tuple[Net, torch.optim.Optimizer, Any]:
        model = Net().double()
        optimizer = BASES[2].torch(model.parameters())
        return model, optimizer, spec.ours(model, optimizer)

    model, optimizer, method = fresh()
    whole = plain(model, STEPS[:20], optimizer, method)
    first = fresh()
    plain(first[0], STEPS[:11], first[1], first[2])
    second = fresh()
    for target, source in zip(second, first, strict=True):
        target.load_state_dict(source.state_dict())
    weights = plain(second[0], STEPS[11:20], second[1], second[2], epoch_starts=())
    assert torch.equal(weights[-1], whole[-1])
