"""Updates made through the Trainer against the float64 references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import MaskRecorder, Net, TinyLM, classification, collate, sentences, steps_of
from reference import BASES, SPECS, Base, Record, Spec, by_name, flat, linear_schedule, reference_run, token_losses
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SCHEDULE = {"lr_scheduler_type": "linear", "warmup_steps": 3}
ONE_OF_EACH = by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3")
every_method = pytest.mark.parametrize("spec", ONE_OF_EACH, ids=str)


def decay(model: nn.Module, weight_decay: float) -> Tensor:
    """transformers decays no bias."""
    return torch.cat(
        [
            torch.full((p.numel(),), 0.0 if name.endswith("bias") else weight_decay, dtype=torch.float64)
            for name, p in model.named_parameters()
        ]
    )


def reference(model: nn.Module, steps: Any, spec: Spec, base: Base, epoch: int, **options: Any) -> list[Record]:
    """The run with a linear schedule, a warm-up of three steps and `epoch` steps an epoch."""
    lrs = linear_schedule(base.lr, 3, len(steps))
    options = {"max_norm": 0.5, "epoch_starts": range(0, len(steps), epoch)} | options
    return reference_run(
        model, steps, spec.reference(), base.reference(decay(model, base.weight_decay)), lrs, **options
    )


def assert_same(weights: list[Tensor], records: list[Record], **tolerance: float) -> None:
    assert len(weights) == len(records)
    expected = torch.stack([record.weights for record in records])
    torch.testing.assert_close(torch.stack(weights).double(), expected, **(tolerance or EXACT))


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_method_on_every_base(spec: Spec, base: Base, train: Any) -> None:
    """Warm-up, linear schedule, clipping, weight decay, accumulation with a short last step; four epochs."""
    model, items = Net().double(), classification(64)
    steps = steps_of(items, 4, accumulation=2, epochs=4)
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=4,
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
    auto = {"mode": "coupled", "gamma": 0.6} if base.adam else {"mode": "decoupled", "gamma": 0.9}
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


def counting_targets() -> type:
    """TinyLM is no transformers model, so its Trainer has to be told that the first label is no target."""
    from hf_sharpness import Trainer

    class Counting(Trainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
            batches, _ = super().get_batch_samples(*args, **kwargs)
            return batches, sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)

    return Counting


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


def smoothed(model: nn.Module, micro_batches: Any) -> list[Tensor]:
    losses = [F.cross_entropy(model(b["x"])["logits"], b["labels"], label_smoothing=0.2) for b in micro_batches]
    return [loss / len(micro_batches) for loss in losses]


def square_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A user's loss, a mean over the items of the effective batch."""
    return (outputs["logits"] - labels[:, None]).pow(2).sum() / num_items_in_batch


def squares(model: nn.Module, micro_batches: Any) -> list[Tensor]:
    items = sum(len(batch["labels"]) for batch in micro_batches)
    return [square_loss(model(b["x"]), b["labels"], items) for b in micro_batches]


LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable]] = {
    "label_smoothing": ({"label_smoothing_factor": 0.2}, {}, smoothed),
    "compute_loss_func": ({}, {"trainer_options": {"compute_loss_func": square_loss}}, squares),
}


@pytest.mark.parametrize(("arguments", "options", "losses"), LOSSES.values(), ids=LOSSES)
@every_method
def test_losses_made_by_the_trainer(spec: Spec, arguments: Any, options: Any, losses: Callable, train: Any) -> None:
    base, model, items = BASES[2], Net().double(), classification(56)
    model.config = None  # where the Trainer looks before it smooths labels
    run = train(
        model,
        items,
        **spec.arguments() | base.arguments() | SCHEDULE | arguments,
        **options,
        max_grad_norm=0.5,
        num_train_epochs=3,
        gradient_accumulation_steps=3,
    )
    steps = steps_of(items, 8, accumulation=3, epochs=3)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if arguments else EXACT  # label smoothing sums in float32
    assert_same(run.weights, reference(model, steps, spec, base, epoch=3, losses=losses), **tolerance)


@every_method
def test_a_loss_in_a_tuple(spec: Spec, train: Any) -> None:
    base, items = BASES[1], classification(32)
    runs = [
        train(Net(output=output).double(), items, **spec.arguments() | base.arguments(), num_train_epochs=2)
        for output in ("dict", "tuple")
    ]
    assert torch.equal(*(run.weights[-1] for run in runs))


@every_method
def test_a_training_step_of_the_users(spec: Spec, train: Any) -> None:
    """A Trainer subclass below the mixin keeps its say in every pass: here a compute_loss of its own."""
    import transformers

    from hf_sharpness import SharpnessTrainerMixin

    class Doubled(transformers.Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    class Mixed(SharpnessTrainerMixin, Doubled):
        pass

    def doubled(model: nn.Module, micro_batches: Any) -> list[Tensor]:
        return [2 * model(**batch)["loss"] / len(micro_batches) for batch in micro_batches]

    base, model, items = BASES[1], Net().double(), classification(64)
    run = train(
        model,
        items,
        trainer_class=Mixed,
        **spec.arguments() | base.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=3,
        gradient_accumulation_steps=2,
    )
    steps = steps_of(items, 8, accumulation=2, epochs=3)
    assert_same(run.weights, reference(model, steps, spec, base, epoch=4, losses=doubled))


@every_method
def test_a_training_step_that_consumes_its_inputs(spec: Spec, train: Any) -> None:
    """Every pass gets the whole micro-batch, also where the user's code takes things out of it."""
    import transformers

    from hf_sharpness import SharpnessTrainerMixin

    class Popping(transformers.Trainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            assert inputs.pop("note").shape == inputs["labels"].shape
            return super().training_step(model, inputs, *args, **kwargs)

    class Mixed(SharpnessTrainerMixin, Popping):
        pass

    base, model, items = BASES[1], Net().double(), classification(64)
    noted = [item | {"note": torch.tensor(0)} for item in items]
    arguments = spec.arguments() | base.arguments() | SCHEDULE
    run = train(
        model,
        noted,
        trainer_class=Mixed,
        **arguments,
        max_grad_norm=0.5,
        num_train_epochs=2,
        remove_unused_columns=False,
    )
    assert_same(run.weights, reference(model, steps_of(items, 8, epochs=2), spec, base, epoch=8))


@pytest.mark.parametrize("spec", by_name("asam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_an_optimizer_of_the_users(spec: Spec, train: Any) -> None:
    """Groups with learning rates and weight decays of their own, from an overridden create_optimizer."""
    import hf_sharpness

    base, model, items = BASES[1], Net().double(), classification(64)
    sizes = [parameter.numel() for parameter in model.parameters()]
    lrs, decays = [torch.tensor(v, dtype=torch.float64) for v in ((0.1, 0.02, 0.05, 0.2), (0.0, 0.1, 0.05, 0.0))]

    class Grouped(hf_sharpness.Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            groups = [
                {"params": [p], "lr": lr, "weight_decay": wd}
                for p, lr, wd in zip(self.model.parameters(), lrs.tolist(), decays.tolist(), strict=True)
            ]
            self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=base.momentum)
            return self.optimizer

    run = train(
        model,
        items,
        trainer_class=Grouped,
        **spec.arguments() | SCHEDULE,
        max_grad_norm=0.5,
        num_train_epochs=3,
    )
    per_element = [v.repeat_interleave(torch.tensor(sizes)) for v in (lrs, decays)]
    records = reference_run(
        model,
        steps_of(items, 8, epochs=3),
        spec.reference(),
        base.reference(per_element[1]),
        linear_schedule(per_element[0], 3, 24),
        max_norm=0.5,
        epoch_starts=(0, 8, 16),
    )
    assert_same(run.weights, records)


class Gambler(TrainerCallback):
    """Draws random numbers between the micro-batches of a step."""

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        torch.rand(3)


ALONE = [Spec(f"{s}-alone", s.method, s.settings | {"scope": "micro_batch"}) for s in ONE_OF_EACH[:3]]


@pytest.mark.parametrize("spec", ONE_OF_EACH + ALONE, ids=str)
def test_every_pass_of_a_micro_batch_sees_the_same_mask(spec: Spec, train: Any) -> None:
    items = classification(48, torch.float32)
    arguments = spec.arguments() | {"gradient_accumulation_steps": 3, "max_steps": 1}
    run = train(Net(MaskRecorder), items, callbacks=[Gambler()], **arguments)
    masks = run.model.middle.masks
    distinct = [mask for i, mask in enumerate(masks) if not any(torch.equal(mask, earlier) for earlier in masks[:i])]
    assert len(distinct) == 3
    passes = len(masks) // 3
    assert passes >= 2
    for mask in distinct:
        assert sum(torch.equal(mask, other) for other in masks) == passes


@every_method
def test_frozen_and_never_used_parameters(spec: Spec, train: Any) -> None:
    """They stay as they are; the update of the others is that of a model without them."""
    base, items = BASES[2], classification(64)

    class Partial(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)
            self.first.weight.requires_grad_(False)

    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.first.weight.requires_grad_(False)

    model = Partial().double()
    run = train(model, items, **spec.arguments() | base.arguments(), num_train_epochs=3)
    twin = train(Frozen().double(), items, **spec.arguments() | base.arguments(), num_train_epochs=3)
    torch.testing.assert_close(run.weights[-1][: len(twin.weights[-1])], twin.weights[-1], rtol=1e-12, atol=1e-12)
    assert torch.equal(flat(run.model.unused), flat(model.unused))
    assert torch.equal(run.model.first.weight, model.first.weight)


@every_method
def test_gradient_checkpointing(spec: Spec, train: Any) -> None:
    """Through the Trainer's own switch, on a transformers model with dropout."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=4,
        patch_size=2,
        num_channels=1,
        num_labels=3,
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    items = [
        {"pixel_values": torch.randn(1, 4, 4), "labels": item["labels"]} for item in classification(24, torch.float32)
    ]
    runs = [
        train(
            model,
            items,
            **spec.arguments() | BASES[2].arguments(),
            num_train_epochs=2,
            gradient_checkpointing=checkpointing,
            gradient_accumulation_steps=2,
        )
        for checkpointing in (False, True)
    ]
    torch.testing.assert_close(runs[0].weights[-1], runs[1].weights[-1], rtol=1e-6, atol=1e-7)


def test_a_sparse_embedding_is_refused(train: Any) -> None:
    model = TinyLM()
    model.embed = nn.Embedding(11, 6, sparse=True)
    run = train(model, sentences(8), optim="sam", base_optim="sgd", max_steps=1, max_grad_norm=0, catch=Exception)
    assert "sparse" in str(run.error).lower()
    assert torch.equal(flat(run.model), flat(model))


def test_collate_keeps_double_precision() -> None:
    assert collate(classification(2))["x"].dtype == torch.float64
