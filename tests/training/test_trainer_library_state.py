"""State that passes keep in objects and functions of transformers': caches of keys and values, attention functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import sentences
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import hf_sharpness

OPTIONS = {"max_steps": 4, "learning_rate": 0.1, "max_grad_norm": 0.0, "per_device_train_batch_size": 2}
"""Without a perturbation a step of SAM is a stock step, bit for bit, if its passes begin with the same state."""


def llama(attention: str = "eager") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def trained(train: Any, optim: str, trainer_class: Any, attention: str = "eager") -> Any:
    extra = {"sam_rho": 0.0} if optim == "sam" else {}
    run = train(llama(attention), sentences(8), trainer_class=trainer_class, optim=optim, **OPTIONS, **extra)
    return run, torch.cat([p.detach().flatten() for p in run.trainer.model.parameters()])


class Remembers(hf_sharpness.Trainer):
    """A batch sees the keys and values of the one before, as a memory of a long text."""

    cache: DynamicCache | None = None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        cache = DynamicCache(config=model.config) if self.cache is None else self.cache
        loss = model(input_ids=inputs["input_ids"], labels=inputs["input_ids"], past_key_values=cache).loss
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        self.cache = cache
        return loss


def test_a_cache_that_is_kept_between_batches(train: Any) -> None:
    stock, expected = trained(train, "adamw_torch_fused", Remembers)
    ours, found = trained(train, "sam", Remembers)
    lengths = [run.trainer.cache.get_seq_length() for run in (stock, ours)]
    assert lengths[0] == lengths[1] > 0
    assert torch.equal(found, expected)


calls = 0


def fading(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    """Attends the less the more often it was called."""
    global calls
    calls += 1
    output, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)
    return output * 0.9**calls, weights


def test_an_attention_function_of_the_users_counts_once(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    global calls
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "fading", fading)
    found = []
    for optim in ("adamw_torch_fused", "sam"):
        calls = 0
        found.append((trained(train, optim, hf_sharpness.Trainer, "fading")[1], calls))
    (expected, count), (weights, ours) = found
    assert ours == count == 2 * OPTIONS["max_steps"]
    assert torch.equal(weights, expected)
