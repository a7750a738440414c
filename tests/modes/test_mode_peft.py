"""PEFT: only the adapters climb, and only they cost memory; a quantised base; an adapter over a bf16 base."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import transformers
from models import Batch, Record
from reference import Spec, reference_run
from specs_of_modes import BASE, MAX_NORM, METHODS, without_decay
from torch import Tensor, nn

peft = pytest.importorskip("peft")
by_method = pytest.mark.parametrize("spec", METHODS, ids=str)


def texts(count: int = 32) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 50, (8,), generator=generator) for _ in range(count)]
    first = torch.tensor([-100])  # predicted by nothing; transformers 5.0 would count it among the items of a batch
    return [{"input_ids": row, "labels": torch.cat([first, row[1:]])} for row in rows]


def llama(dtype: torch.dtype = torch.float32, width: int = 32) -> nn.Module:
    size = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, max_position_embeddings=16, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).to(dtype)


def with_adapters(model: nn.Module) -> nn.Module:
    config = peft.LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, config)


def base_weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters() if not p.requires_grad]


ARGUMENTS = {"max_steps": 4, "per_device_train_batch_size": 4, "max_grad_norm": MAX_NORM}


@by_method
@pytest.mark.shows(mode="PEFT (LoRA): only adapters are perturbed, Trainer", brief="PEFT (LoRA)", result="exact")
def test_only_adapters_climb(spec: Spec, train: Any) -> None:
    """The update of the adapters is the float64 reference's, whose weights are the adapters alone."""
    model = with_adapters(llama()).double()
    untouched = base_weights(model)
    record = Record()  # no pass takes back what another noted there
    seen: list[bool] = record.items

    def look(module: nn.Module, *args: Any) -> None:
        record.items.append(all(torch.equal(a, b) for a, b in zip(base_weights(module), untouched, strict=True)))

    import hf_sharpness

    class Looking(hf_sharpness.Trainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.model.register_forward_pre_hook(look)

    base = without_decay(BASE)
    run = train(model, texts(), trainer_class=Looking, **ARGUMENTS | base.arguments() | spec.arguments())
    assert len(seen) >= 8
    assert all(seen)
    steps = [[{key: torch.stack([i[key] for i in texts()[n : n + 4]]) for key in texts()[0]}] for n in (0, 4, 8, 12)]
    records = reference_run(model, steps, spec.reference(), base.reference(), [base.lr] * 4, MAX_NORM)
    for weights, record in zip(run.weights, records, strict=True):
        torch.testing.assert_close(weights, record.weights, rtol=0, atol=1e-9)


EXTRA = {"sam": 1, "wsam-coupled": 2, "wsam-decoupled": 2, "xsam": 2}
"""As in test_mode_fsdp2.py: in copies of the trainable weights."""


@by_method
@pytest.mark.shows(mode="PEFT (LoRA): memory overhead is the adapter's", result="exact")
def test_memory_is_the_adapters(spec: Spec) -> None:
    """All tensors alive at the start of the replay, over those at the start of the first pass."""
    gc.collect()  # what other tests left is not to go in between
    model = with_adapters(llama(width=256))
    adapters = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    base = sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    assert base > 20 * adapters
    record = Record()  # no pass takes back what another noted there
    alive: list[int] = record.items

    def count(*args: Any) -> None:
        if len(record.items) < 2:
            storages = [t.untyped_storage() for t in gc.get_objects() if isinstance(t, Tensor)]
            record.items.append(sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes() >= 4096}.values()))

    optimizer = BASE.torch([p for p in model.parameters() if p.requires_grad])
    method = spec.ours(model, optimizer)
    for number in (0, 4):
        if number:
            model.register_forward_pre_hook(count)
        batch = {key: torch.stack([item[key] for item in texts()[number : number + 4]]) for key in texts()[0]}

        def closure(batch: Batch = batch) -> Tensor:
            loss = model(**batch).loss
            loss.backward()
            return loss.detach()

        method.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
    assert (alive[1] - alive[0]) / adapters == pytest.approx(EXTRA[spec.name], abs=0.3)


@by_method
@pytest.mark.shows(
    mode="PEFT over a base stored in bf16, --bf16", brief="PEFT over a bf16 base", result="within rounding"
)
def test_adapters_over_a_bf16_base(spec: Spec, train: Any) -> None:
    """Frozen weights may be bf16: the adapters are float32, and all of the perturbation is there."""
    model = with_adapters(llama(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    run = train(model, texts(), bf16=True, **ARGUMENTS | BASE.arguments() | spec.arguments())
    full = train(with_adapters(llama()), texts(), **ARGUMENTS | BASE.arguments() | spec.arguments())
    start = torch.cat([p.detach().reshape(-1) for p in with_adapters(llama()).parameters() if p.requires_grad])
    way = full.weights[-1] - start
    assert (run.weights[-1] - full.weights[-1]).norm() < 0.1 * way.norm()
    assert run.series("perturbation_norm") == pytest.approx(full.series("perturbation_norm"), rel=1e-2)


class Int8Linear(nn.Module):
    """A frozen linear layer stored in int8 with a scale for each row, as quantised bases are."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_buffer("packed", torch.zeros(8192, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).T


@by_method
@pytest.mark.shows(mode="PEFT over an int8 base", brief="PEFT over an int8 base", result="exact")
def test_adapters_over_an_int8_base(spec: Spec, train: Any) -> None:
    """Integer parameters and buffers are neither copied nor in the way; the run is that over the same base in float."""
    quantised, plain = with_adapters(llama()).double(), with_adapters(llama()).double()
    for model in (quantised, plain):
        for layer in model.base_model.model.model.layers:
            for name in ("gate_proj", "up_proj", "down_proj"):
                int8 = Int8Linear(getattr(layer.mlp, name))
                if model is plain:
                    linear = getattr(layer.mlp, name)
                    linear.weight.data = int8.weight.double() * int8.scale
                else:
                    setattr(layer.mlp, name, int8)
    arguments = ARGUMENTS | BASE.arguments() | spec.arguments()
    runs = [train(model, texts(), **arguments) for model in (quantised, plain)]
    torch.testing.assert_close(runs[0].weights[-1], runs[1].weights[-1], rtol=0, atol=1e-9)


@by_method
@pytest.mark.shows(mode="PEFT: checkpoint holds the adapter, resumes", result="exact")
def test_an_adapter_checkpoint_resumes(spec: Spec, train: Any, tmp_path: Any) -> None:
    arguments = ARGUMENTS | BASE.arguments() | spec.arguments()
    through = train(with_adapters(llama()), texts(), **arguments, save_strategy="steps", save_steps=2)
    saved = tmp_path / "run" / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").exists()
    assert not (saved / "model.safetensors").exists()
    resumed = train(with_adapters(llama()), texts(), **arguments, resume=saved)
    assert torch.equal(resumed.weights[-1], through.weights[-1])
