"""Whole runs on texts, kept tiny: what they leave behind, and mistakes about their model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import training
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.recipe import Recipe
from hf_sharpness.tasks.run import run_recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.tasks.splits import load_data


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A pretrained model with a head of three classes, as a local folder."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "play", "very"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    torch.manual_seed(1)  # not what a run draws
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def reviews(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["sentence,second,label"]
    for _ in range(60):
        label = rng.integers(2)
        lines.append(f"{'very ' * rng.integers(3)}{['bad', 'good'][label]} film,play,{['neg', 'pos'][label]}")
    (tmp_path / "reviews.csv").write_text("\n".join(lines) + "\n")
    return DataSection(source="csv", data_files=str(tmp_path / "reviews.csv"), text_column="sentence")


@pytest.mark.parametrize("pair", [None, "second"])
def test_text_run_leaves_a_usable_folder(tmp_path, bert_folder, reviews, pair):
    pytest.importorskip("datasets")
    reviews.text_pair_column = pair
    model = ModelSection(name_or_path=str(bert_folder), ignore_mismatched_sizes=True, config={"num_hidden_layers": 1})
    output = tmp_path / "out"
    recipe = Recipe("sequence-classification", model, reviews, training(output, optim="wsam"))
    metrics = run_recipe(recipe)

    saved = AutoModelForSequenceClassification.from_pretrained(output).eval()
    assert saved.config.num_hidden_layers == 1
    assert saved.config.label2id == {"neg": 0, "pos": 1}
    tokenizer = AutoTokenizer.from_pretrained(output)
    test = load_data(recipe).test
    texts = [text for text, _ in test]
    columns = [list(column) for column in zip(*texts, strict=True)] if pair else [texts]
    with torch.no_grad():
        logits = saved(**tokenizer(*columns, padding=True, return_tensors="pt")).logits
    assert metrics["test_accuracy"] == pytest.approx(np.mean(logits.argmax(-1).numpy() == test.labels))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(test.labels)).item()
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name_or_path": "FOLDER"}, ["ignore_mismatched_sizes true", "2"]),
        ({"name_or_path": "nowhere/at-all"}, ["model.name_or_path", "'nowhere/at-all'"]),
        ({}, ["model.tokenizer"]),
        ({"tokenizer": "FOLDER"}, ["--model.name_or_path"]),
        ({"tokenizer": "FOLDER", "model_type": "brt"}, ["'brt'", "'bert'"]),
        ({"name_or_path": "FOLDER", "config": {"hidden_sise": 4}}, ["'hidden_sise'", "'hidden_size'"]),
        ({"name_or_path": "FOLDER", "config": {"hidden_size": "x"}}, ["model.config", "hidden_size"]),
        ({"name_or_path": "FOLDER", "config": {"save_pretrained": "x"}}, ["unknown entry 'save_pretrained'"]),
        ({"name_or_path": "FOLDER", "config": {"name_or_path": "x"}}, ["'name_or_path' is no setting of a model"]),
    ],
)
def test_model_mistakes_are_one_clear_error(tmp_path, bert_folder, reviews, model, words):
    pytest.importorskip("datasets")
    model = {key: str(bert_folder) if value == "FOLDER" else value for key, value in model.items()}
    recipe = Recipe("sequence-classification", ModelSection(**model), reviews, training(tmp_path / "out"))
    with pytest.raises(RecipeError) as caught:
        run_recipe(recipe)
    for word in words:
        assert word in str(caught.value)


def test_random_weights_from_a_stored_configuration(tmp_path, bert_folder, reviews):
    pytest.importorskip("datasets")
    model = ModelSection(name_or_path=str(bert_folder), pretrained=False)
    recipe = Recipe("sequence-classification", model, reviews, training(tmp_path / "out", max_steps=1))
    run_recipe(recipe)
    stored = BertForSequenceClassification.from_pretrained(bert_folder)
    fresh = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.allclose(stored.state_dict()[name], fresh.state_dict()[name], atol=0.02)
