"""The checks of safety: passes repeat on a GPU as far as its kernels do, and nothing is left perturbed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .training import DEVICE, METHODS, Count, Row, even, items, judged, network, run

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
STEPS = 12
"""``sam_check`` compares in steps 1 and 10."""


def _texts(length: int = 32) -> list[dict[str, Any]]:
    return items(128, length)


def _words(length: int = 32) -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in items(128, length)]


def _images(size: int = 32) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(128, 3, size, size, generator=generator)
    return [{"pixel_values": image, "labels": index % 8} for index, image in enumerate(pixels)]


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        image_size=32, patch_size=4, num_labels=8, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **SMALL
    )
    return transformers.ViTForImageClassification(config)


def _resnet() -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic", "num_labels": 8}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=64, num_key_value_heads=1, max_position_embeddings=64, attention_dropout=0.1, **SMALL
    )
    return transformers.LlamaForCausalLM(config)


def _mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=64, num_key_value_heads=1, num_local_experts=4, output_router_logits=True, **SMALL
    )
    return transformers.MixtralForCausalLM(config)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[dict[str, Any]]]]] = {
    "BERT": (lambda: network(dropout=0.1), _texts),
    "Llama": (_llama, _words),
    "Mixtral": (_mixtral, _words),
    "ViT": (_vit, _images),
    "ResNet": (_resnet, _images),
}
PRECISIONS: dict[str, dict[str, Any]] = {"float32": {}, "tf32": {"tf32": True}, "bf16": {"bf16": True}}
PRECISIONS |= {"fp16": {"fp16": True}}


def quiet() -> Iterator[Row]:
    """``sam_check=error`` finds nothing: kernels that add in no fixed order differ by less than what it minds."""
    for family, (make, data) in FAMILIES.items():
        heard = []
        for precision, arguments in PRECISIONS.items():
            torch.manual_seed(0)
            try:
                method = {**METHODS["SAM"], "sam_check": "error"}
                run(method, make(), data=data(), max_steps=STEPS, **arguments)
            except RuntimeError as error:
                heard.append(f"{precision}: {str(error).splitlines()[0][:160]}")
        result = "quiet" if not heard else f"FAILED: {'; '.join(heard)}"
        yield f"sam_check in {', '.join(PRECISIONS)}", family, result


def heard() -> Iterator[Row]:
    """And it does hear noise that nobody can draw again."""
    model = network()

    def noise(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seed = int.from_bytes(os.urandom(4), "little")
        generator = torch.Generator(output.device).manual_seed(seed)
        return output + 0.5 * torch.randn(output.shape, device=output.device, generator=generator).to(output.dtype)

    model.bert.encoder.layer[0].register_forward_hook(
        lambda module, inputs, output: noise(module, inputs, output[0] if isinstance(output, tuple) else output)
    )
    try:
        run({**METHODS["SAM"], "sam_check": "error"}, model)
        result = "FAILED: not noticed"
    except RuntimeError as error:
        named = "bert.encoder.layer" in str(error)
        result = "raised, and the layer named" if named else f"FAILED: {error}"
    yield "sam_check where a layer draws from the system's noise", "SAM", result


def out_of_memory() -> Iterator[Row]:
    """The device's memory runs out in a replay: the weights are what they were before the step."""
    for name, method in METHODS.items():
        model, passes = network(), Count()
        before: list[Tensor] = []

        def hook(module: nn.Module, inputs: Any, passes: Count = passes, before: list[Tensor] = before) -> None:
            number = passes.next()
            if number == 5:  # two passes of two micro-batches a step: the second step begins
                before.extend(p.detach().clone() for p in module.parameters())
            if number == 8:
                torch.empty(2**50, dtype=torch.uint8, device=DEVICE)

        model.register_forward_pre_hook(hook)
        try:
            run({**method, **even(name)}, model)
            yield "out of memory in a replay", name, "FAILED: nothing was raised"
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if "memory" not in str(error):
                raise
            same = all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
            yield "out of memory in a replay", name, "weights as before, bit for bit" if same else "FAILED: perturbed"


def stock_at_zero() -> Iterator[Row]:
    """With deterministic kernels, WSAM with gamma 0 is the base optimizer bit for bit, dropout included."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        stock = run(None, network(dropout=0.1)).weights[-1]
        for name in ("WSAM coupled", "WSAM decoupled"):
            ours = run({**METHODS[name], "wsam_gamma": 0.0}, network(dropout=0.1)).weights[-1]
            off = float((ours - stock).norm())
            yield "gamma 0, deterministic kernels, against stock", name, judged(off, 0.0)
        early = run(None, network(dropout=0.1)).weights[3]
        late = run({**METHODS["SAM"], "sam_start": 0.5}, network(dropout=0.1)).weights[3]
        yield "before sam_start, deterministic kernels, against stock", "SAM", judged(float((late - early).norm()), 0.0)
    finally:
        torch.use_deterministic_algorithms(False)
