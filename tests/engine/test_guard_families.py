"""The guard is quiet on tiny random models of many families: their passes repeat, dropout and routing included."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_sharpness import WSAM

pytestmark = pytest.mark.checked
transformers = pytest.importorskip("transformers")

Case = tuple[Any, dict[str, Any]]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": 64, "max_position_embeddings": 64, **SMALL}
IMAGES = {"image_size": 16, "patch_size": 4, "num_labels": 3, **SMALL}
AUTOREGRESSIVE = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
AUTOREGRESSIVE |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0}
AUTOREGRESSIVE |= {"max_position_embeddings": 64, "decoder_start_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
CLASSES = torch.tensor([0, 1])


def tokens() -> Tensor:
    return torch.randint(3, 60, (2, 9))


def made(model: str, config: str, **settings: Any) -> Any:
    return getattr(transformers, model)(getattr(transformers, f"{config}Config")(**settings))


def classifier(name: str, **settings: Any) -> Case:
    model = made(f"{name}ForSequenceClassification", name, **(settings or TEXT))
    return model, {"input_ids": tokens(), "labels": CLASSES}


def causal(name: str, model: str = "", without: tuple[str, ...] = (), **settings: Any) -> Case:
    kept = {key: value for key, value in TEXT.items() if key not in without}
    words = tokens()
    return made(model or f"{name}ForCausalLM", name, **kept, **settings), {"input_ids": words, "labels": words.clone()}


def sequences(name: str, **settings: Any) -> Case:
    model = made(f"{name}ForConditionalGeneration", name, vocab_size=64, **settings)
    return model, {"input_ids": tokens(), "labels": tokens()}


def images(name: str, size: int = 16, **settings: Any) -> Case:
    model = made(f"{name}ForImageClassification", name, **(settings or IMAGES))
    return model, {"pixel_values": torch.randn(2, 3, size, size), "labels": CLASSES}


LAYERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
GROUPED = {"num_key_value_heads": 2, "pad_token_id": 0}
FAST: dict[str, Callable[[], Case]] = {
    "bert": lambda: classifier("Bert"),
    "gpt2": lambda: causal("GPT2", "GPT2LMHeadModel", LAYERS, n_embd=16, n_layer=2, n_head=2),
    "llama": lambda: causal("Llama", **GROUPED),
    "t5": lambda: sequences("T5", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0),
    "vit": lambda: images("ViT"),
    "resnet": lambda: images(
        "ResNet", 32, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    ),
}
SLOW: dict[str, Callable[[], Case]] = {
    "roberta": lambda: classifier("Roberta"),
    "distilbert": lambda: classifier("DistilBert", vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "albert": lambda: classifier("Albert", embedding_size=16, **TEXT),
    "electra": lambda: classifier("Electra", embedding_size=16, **TEXT),
    "deberta-v2": lambda: classifier("DebertaV2"),
    "mpnet": lambda: classifier("MPNet"),
    "xlnet": lambda: classifier("XLNet", vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32),
    "gpt_neox": lambda: causal("GPTNeoX"),
    "opt": lambda: causal("OPT", without=("intermediate_size",), ffn_dim=32, word_embed_proj_dim=16),
    "mistral": lambda: causal("Mistral", **GROUPED),
    "mixtral": lambda: causal("Mixtral", num_local_experts=4, output_router_logits=True, **GROUPED),
    "qwen2": lambda: causal("Qwen2", **GROUPED),
    "qwen3": lambda: causal("Qwen3", head_dim=8, **GROUPED),
    "gemma2": lambda: causal("Gemma2", head_dim=8, **GROUPED),
    "phi": lambda: causal("Phi", **GROUPED),
    "falcon": lambda: causal("Falcon", without=("intermediate_size",)),
    "bloom": lambda: causal("Bloom", without=LAYERS[1:], n_layer=2, n_head=2),
    "mamba": lambda: causal("Mamba", without=LAYERS[2:], state_size=4),
    "bart": lambda: sequences("Bart", **AUTOREGRESSIVE),
    "pegasus": lambda: sequences("Pegasus", **AUTOREGRESSIVE),
    "deit": lambda: images("DeiT"),
    "beit": lambda: images("Beit", drop_path_rate=0.1, **IMAGES),
    "dinov2": lambda: images("Dinov2", **{k: v for k, v in IMAGES.items() if k != "intermediate_size"}),
    "swin": lambda: images(
        "Swin", 32, image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "convnext": lambda: images("ConvNext", 32, hidden_sizes=[8] * 4, depths=[1] * 4, drop_path_rate=0.1),
    "segformer": lambda: (
        made(
            "SegformerForSemanticSegmentation",
            "Segformer",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 8],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            num_labels=3,
        ),
        {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.randint(0, 3, (2, 32, 32))},
    ),
    "detr": lambda: (
        made(
            "DetrForObjectDetection",
            "Detr",
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=transformers.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8] * 4,
                depths=[1] * 4,
                layer_type="basic",
                out_features=["stage4"],
            ),
            num_queries=5,
            num_labels=3,
            **{k: v for k, v in AUTOREGRESSIVE.items() if k not in ("max_position_embeddings",)},
        ),
        {
            "pixel_values": torch.randn(2, 3, 64, 64),
            "labels": [{"class_labels": CLASSES[:1], "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2,
        },
    ),
    "wav2vec2": lambda: (
        made(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2",
            conv_dim=(8, 8),
            conv_stride=(2, 2),
            conv_kernel=(3, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            layerdrop=0.1,
            classifier_proj_size=8,
            mask_time_length=2,
            **SMALL,
        ),
        {"input_values": torch.randn(2, 200), "labels": CLASSES},
    ),
    "whisper": lambda: (
        made(
            "WhisperForConditionalGeneration",
            "Whisper",
            vocab_size=64,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=20,
            **{k: v for k, v in AUTOREGRESSIVE.items() if k != "max_position_embeddings"},
        ),
        {"input_features": torch.randn(2, 8, 40), "labels": tokens()},
    ),
    "videomae": lambda: (
        made("VideoMAEForVideoClassification", "VideoMAE", num_frames=4, **IMAGES),
        {"pixel_values": torch.randn(2, 4, 3, 16, 16), "labels": CLASSES},
    ),
    "clip": lambda: (
        made(
            "CLIPModel",
            "CLIP",
            projection_dim=8,
            text_config={"eos_token_id": 2, **TEXT},
            vision_config={"image_size": 16, "patch_size": 8, **SMALL},
        ),
        {"input_ids": tokens(), "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True},
    ),
}


@pytest.mark.parametrize("family", [*FAST, *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]])
def test_quiet(family: str) -> None:
    if family == "detr":
        pytest.importorskip("scipy")
    torch.manual_seed(0)
    model, batch = (FAST | SLOW)[family]()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    method = WSAM(model, optimizer, mode="coupled", check="error")

    def closure() -> Tensor:
        loss = model(**batch).loss
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*for the first time.*")
        for _ in range(2):
            assert method.backward(closure).isfinite()
            optimizer.step()
            optimizer.zero_grad()
