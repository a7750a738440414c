"""Splits, caps and label noise: decided by `data.seed` alone, and test examples never trained on."""

from __future__ import annotations

import numpy as np
import pytest

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.recipe import Recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.tasks.splits import add_label_noise, load_data

pytest.importorskip("sklearn")


def digits(**data):
    return load_data(Recipe("image-classification", ModelSection(), DataSection(source="digits", **data), {}))


def rows(data):
    return {name: getattr(data, name).rows.tolist() for name in ("train", "eval", "test")}


def test_the_splits_are_a_partition():
    split = rows(digits())
    assert [len(split[name]) for name in ("test", "eval", "train")] == [359, 144, 1294]  # .2 of 1797, .1 of the rest
    assert sorted(row for part in split.values() for row in part) == list(range(1797))


def test_the_seed_decides():
    assert rows(digits()) == rows(digits())
    assert rows(digits())["test"] != rows(digits(seed=1))["test"]


@pytest.mark.parametrize("change", [{"train_samples": 50}, {"label_noise": 0.3}, {"validation_fraction": 0.4}])
def test_the_test_split_stays(change):
    assert rows(digits(**change))["test"] == rows(digits())["test"]


def test_caps():
    small, large = (digits(train_samples=size, eval_samples=20, test_samples=5) for size in (50, 100))
    assert [len(split) for split in (small.train, small.eval, small.test)] == [50, 20, 5]
    assert set(small.train.rows) < set(large.train.rows) < set(digits().train.rows)
    assert len(digits(train_samples=10**6).train) == 1294


def test_labels_follow_their_images():
    from sklearn.datasets import load_digits

    expected, data = load_digits(), digits(train_samples=30)
    for (image, label), row in zip(data.train, data.train.rows, strict=True):
        np.testing.assert_array_equal(np.rint(image / 255 * 16), expected.images[row])
        assert label == expected.target[row]


def test_label_noise_touches_training_labels_only():
    clean, noisy = digits(), digits(label_noise=0.4)
    assert rows(clean) == rows(noisy)
    assert np.sum(clean.train.labels != noisy.train.labels) == round(0.4 * 1294)
    np.testing.assert_array_equal(clean.eval.labels, noisy.eval.labels)
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_label_noise_is_exact_and_uniform_over_the_other_classes(fraction):
    labels = np.full(40_000, 2)
    noisy = add_label_noise(labels, fraction, 5, np.random.default_rng(0))
    assert np.all(labels == 2)
    wrong = noisy[noisy != 2]
    assert len(wrong) == fraction * 40_000
    counts = np.bincount(wrong, minlength=5)
    assert counts[2] == 0
    if fraction:
        share = len(wrong) / 4
        assert np.all(np.abs(counts[[0, 1, 3, 4]] - share) < 5 * np.sqrt(share))


def test_too_little_to_split():
    with pytest.raises(RecipeError, match="0 evaluation"):
        digits(validation_fraction=1e-6)


def test_a_test_seed_keeps_the_test_split_while_the_seed_moves_the_rest():
    caps = {"train_samples": 300, "eval_samples": 40, "test_samples": 50, "label_noise": 0.4}
    own, moved = digits(seed=3, **caps), digits(seed=7, test_seed=3, **caps)
    assert rows(own)["test"] == rows(moved)["test"]
    assert rows(own)["eval"] != rows(moved)["eval"]
    assert rows(own)["train"] != rows(moved)["train"]
    assert not set(rows(moved)["test"]) & set(rows(moved)["train"] + rows(moved)["eval"])
    assert rows(digits(seed=3, test_seed=3, **caps)) == rows(own)


def test_a_share_of_the_training_examples():
    """Of those that the cuts leave; test and evaluation are as ever, and a larger share holds the smaller one."""
    tenth, half = digits(train_fraction=0.1), digits(train_fraction=0.5)
    assert (len(tenth.train), len(half.train)) == (round(0.1 * 1294), 647)
    assert set(tenth.train.rows) < set(half.train.rows)
    assert [rows(tenth)[name] for name in ("eval", "test")] == [rows(digits())[name] for name in ("eval", "test")]
    assert rows(digits(train_fraction=1.0)) == rows(digits())
    assert rows(digits(train_fraction=0.1)) == rows(digits(train_samples=129))
    assert len(digits(train_fraction=0.5, train_samples=20).train) == 20
    assert len(digits(train_fraction=1e-9).train) == 1


@pytest.mark.parametrize("value", [0, 1.5, -0.1])
def test_a_share_is_between_0_and_1(value):
    with pytest.raises(ValueError, match="train_fraction"):
        DataSection(source="digits", train_fraction=value)
