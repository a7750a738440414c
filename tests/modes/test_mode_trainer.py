"""The Trainer's own features, each with every method: compiled, checkpointed, out of memory, noisy, without caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, Saboteur
from reference import Spec
from specs_of_modes import named
from trainer_modes import ITEMS, SGD, as_stock, assert_stock_at_rho_0, bert, by_method, documents

import hf_sharpness

# torch.compile, gradient checkpointing.


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@by_method
@pytest.mark.shows(mode="torch.compile ({backend})", brief="`torch_compile`, {backend}", result="within rounding")
def test_compiled(spec: Spec, backend: str, train: Any) -> None:
    torch._dynamo.reset()
    arguments = SGD | spec.arguments() | {"max_steps": 3, "gradient_accumulation_steps": 2}
    eager = train(Net(), ITEMS, **arguments)
    compiled = train(Net(), ITEMS, **arguments, torch_compile=True, torch_compile_backend=backend)
    for a, b in zip(eager.weights, compiled.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [True, False])
@by_method
@pytest.mark.shows(
    mode="Gradient checkpointing, reentrant: {reentrant}", brief="Gradient checkpointing, both variants", result="exact"
)
def test_gradient_checkpointing(spec: Spec, reentrant: bool, train: Any) -> None:
    """With dropout: the run is bit for bit the one without checkpointing."""
    arguments = SGD | spec.arguments() | {"max_steps": 3, "gradient_accumulation_steps": 2}
    arguments["per_device_train_batch_size"] = 4
    whole = train(bert(), documents(), **arguments)
    parts = train(
        bert(),
        documents(),
        **arguments,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, parts.weights, strict=True))


# Out of memory.


def out_of_memory_at(number: int) -> Net:
    def forward(n: int) -> None:
        if n == number:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return Net(lambda: Saboteur(on_forward=forward))


@by_method
@pytest.mark.shows(
    mode="auto_find_batch_size, out of memory in the replay",
    brief="`auto_find_batch_size`, out of memory in the replay",
    result="exact",
)
def test_out_of_memory_in_the_replay(spec: Spec, train: Any) -> None:
    """The run is bit for bit the one that began with the batch size which is found."""
    arguments = {"max_steps": 5, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    run = train(out_of_memory_at(3), ITEMS, **arguments, auto_find_batch_size=True)  # the first forward of the replay
    size = run.trainer._train_batch_size
    assert size < 8
    fresh = train(Net(), ITEMS, **arguments, per_device_train_batch_size=size)
    assert len(run.weights) == len(fresh.weights) == 5
    assert all(torch.equal(a, b) for a, b in zip(run.weights, fresh.weights, strict=True))


def test_out_of_memory_starts_the_search_anew(train: Any) -> None:
    """What an attempt with a larger batch found is not taken over: the next attempt searches in its first step."""
    spec, searched = named("xsam"), []
    from hf_sharpness.methods import XSAM

    class Noting(XSAM):
        def find_alpha(self, *args: Any) -> float | None:
            searched.append(self.steps_taken)
            return super().find_alpha(*args)

    class WithNoting(hf_sharpness.TrainingArguments):
        def method(self) -> Any:
            made = super().method()
            made.__class__ = Noting
            return made

    arguments = {"max_steps": 4, "xsam_refresh": 3, "xsam_search": "grid"} | SGD | spec.arguments()
    run = train(out_of_memory_at(26), ITEMS, arguments_class=WithNoting, **arguments, auto_find_batch_size=True)
    assert len(run.weights) > 4, "the error came in a later step"
    assert searched == [0, 0, 3]


# Noise, caches.


@as_stock
@pytest.mark.shows(mode="NEFTune: rho 0 = stock", result="exact")
def test_neftune_is_stock_at_rho_0(spec: Spec, train: Any) -> None:
    """Noise on the embeddings: the replay sees the noise of the first pass."""
    options = {"max_steps": 4, "neftune_noise_alpha": 5.0, "gradient_accumulation_steps": 2}
    assert_stock_at_rho_0(train, spec, bert(), documents(), **options, per_device_train_batch_size=4)


@by_method
@pytest.mark.shows(mode="torch_empty_cache_steps", result="exact")
def test_emptying_the_cache_changes_nothing(spec: Spec, train: Any) -> None:
    arguments = {"max_steps": 4, "gradient_accumulation_steps": 2} | SGD | spec.arguments()
    runs = [train(Net(), ITEMS, **arguments, **extra) for extra in ({}, {"torch_empty_cache_steps": 1})]
    assert torch.equal(runs[0].weights[-1], runs[1].weights[-1])
