"""Updates made through the Trainer against the float64 references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, TinyLM, classification, sentences, steps_of
from reference import BASES, SPECS, Base, Spec, by_name, token_losses
from trainer_updates import SCHEDULE, assert_same, counting_targets, every_method, reference


@pytest.mark.usually("adamw|^(sam|wsam-decoupled|xsam)-sgd-momentum")
@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_method_on_every_base(spec: Spec, base: Base, train: Any) -> None:
    """Warm-up, linear schedule, clipping, weight decay, accumulation with a short last step; two epochs."""
    model, items = Net().double(), classification(64)
    steps = steps_of(items, 4, accumulation=2, epochs=2)
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    assert_same(run.weights, reference(model, steps, spec, base, epoch=8))


@pytest.mark.parametrize("base", BASES[1:], ids=str)
@pytest.mark.parametrize("spec", by_name("sam", "asam-k2", "wsam-coupled", "wsam-decoupled", "xsam-beyond"), ids=str)
def test_in_float32(spec: Spec, base: Base, train: Any) -> None:
    """The same in single precision: within its rounding of the float64 reference. (A search among probes this close
    to each other could fall either way.)"""
    model, items = Net(), classification(64, torch.float32)
    run = train(model, items, **spec.arguments() | base.arguments() | SCHEDULE, max_grad_norm=0.5, num_train_epochs=4)
    records = reference(model, steps_of(items, 8, epochs=4), spec, base, epoch=8)
    assert_same(run.weights, records, rtol=1e-5, atol=1e-5)


SPECIAL = [
    ("wsam", {"wsam_mode": "coupled", "wsam_gamma": 0.5}, Spec("", "sam", {"rho": 0.2})),
    ("xsam", {"xsam_alpha": 1.0}, Spec("", "sam", {"rho": 0.2})),
    ("xsam", {"xsam_alpha": 1.0, "sam_steps": 3}, Spec("", "sam", {"rho": 0.2, "steps": 3})),
    ("wsam", {"wsam_mode": "auto"}, None),
]


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize(("optim", "arguments", "same_as"), SPECIAL, ids=str)
def test_special_cases(optim: str, arguments: Any, same_as: Spec | None, base: Base, train: Any) -> None:
    model, items = Net().double(), classification(64)
    run = train(
        model,
        items,
        optim=optim,
        sam_rho=0.2,
        **arguments | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=4,
    )
    auto = {"mode": "decoupled", "gamma": 0.9} if base.momentum else {"mode": "coupled", "gamma": 0.6}
    same_as = same_as or Spec("", "wsam", {"rho": 0.2} | auto)
    assert_same(run.weights, reference(model, steps_of(items, 8, epochs=4), same_as, base, epoch=8))


@pytest.mark.parametrize("base", BASES[1:], ids=str)
@every_method
def test_four_micro_batches_of_8_are_one_batch_of_32(spec: Spec, base: Base, train: Any) -> None:
    model, items = Net().double(), classification(64)
    records = reference(model, steps_of(items, 32, epochs=2), spec, base, epoch=2)
    for size, accumulation in ((8, 4), (32, 1)):
        run = train(
            model,
            items,
            **spec.arguments() | base.arguments() | SCHEDULE,
            max_grad_norm=0.5,
            num_train_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        assert_same(run.weights, records)


@every_method
def test_a_short_last_step(spec: Spec, train: Any) -> None:
    """Seven micro-batches in steps of three: the last step of each epoch has one."""
    base, model, items = BASES[2], Net().double(), classification(56)
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=3,
        gradient_accumulation_steps=3,
    )
    steps = steps_of(items, 8, accumulation=3, epochs=3)
    assert [len(step) for step in steps[:3]] == [3, 3, 1]
    assert_same(run.weights, reference(model, steps, spec, base, epoch=3))


@every_method
def test_token_counts_that_differ(spec: Spec, train: Any) -> None:
    """Every target token of the effective batch weighs the same, whatever micro-batch it is in."""
    base, model, items = BASES[2], TinyLM().double(), sentences(28)
    steps = steps_of(items, 4, accumulation=3, epochs=3)
    counts = [[int((batch["labels"][:, 1:] != -100).sum()) for batch in step] for step in steps]
    assert len(set(counts[0])) > 1
    assert len(counts[2]) == 1
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE,
        trainer_class=counting_targets(),
        max_grad_norm=0.5,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    assert_same(run.weights, reference(model, steps, spec, base, epoch=3, losses=token_losses))


@pytest.mark.parametrize("spec", by_name("sam", "wsam-decoupled", "xsam-beyond"), ids=str)
def test_a_transformers_language_model(spec: Spec, train: Any) -> None:
    """GPT-2, tied weights and all, in float32; six tokens of each eight-token sequence are targets, or fewer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    torch.manual_seed(0)
    base, model, items = Base("sgd", lr=0.1), GPT2LMHeadModel(config), sentences(24)
    for item in items:
        item["labels"][0] = -100  # so that counting labels with or without the shift is one and the same
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
    )
    steps = steps_of(items, 2, accumulation=3, epochs=3)
    assert_same(run.weights, reference(model, steps, spec, base, epoch=4, losses=token_losses), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", BASES[1:], ids=str)
@pytest.mark.parametrize("name", ["sam", "asam-k2", "wsam-coupled", "wsam-decoupled"])
def test_micro_batch_scope(name: str, base: Base, train: Any) -> None:
    """Every micro-batch climbs by its own gradient, and that is not the same as climbing together."""
    (together,) = by_name(name)
    alone = Spec(name, together.method, together.settings | {"scope": "micro_batch"})
    model, items = Net().double(), classification(72)
    run = train(
        model,
        items,
        **alone.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=4,
        gradient_accumulation_steps=4,
    )
    steps = steps_of(items, 8, accumulation=4, epochs=4)
    assert_same(run.weights, reference(model, steps, alone, base, epoch=3))
    assert (run.weights[-1] - reference(model, steps, together, base, epoch=3)[-1].weights).norm() > 1e-4


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled"), ids=str)
def test_micro_batch_scope_weighs_tokens(spec: Spec, train: Any) -> None:
    base, model, items = BASES[1], TinyLM().double(), sentences(28)
    spec = Spec(spec.name, spec.method, spec.settings | {"scope": "micro_batch"})
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE,
        trainer_class=counting_targets(),
        max_grad_norm=0.5,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    steps = steps_of(items, 4, accumulation=3, epochs=3)
    assert_same(run.weights, reference(model, steps, spec, base, epoch=3, losses=token_losses))


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled"), ids=str)
def test_device_scope_on_one_device_is_global(spec: Spec, train: Any) -> None:
    base, model, items = BASES[1], Net().double(), classification(64)
    arguments = spec.arguments() | base.arguments() | SCHEDULE | {"sam_scope": "device"}
    run = train(model, items, **arguments, max_grad_norm=0.5, num_train_epochs=3, gradient_accumulation_steps=2)
    steps = steps_of(items, 8, accumulation=2, epochs=3)
    assert_same(run.weights, reference(model, steps, spec, base, epoch=4))
