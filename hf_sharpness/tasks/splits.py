"""From a source to the three splits of a run: cut, cap, and add label noise, all decided by `data.seed`.

What concerns the test split alone is decided by `data.test_seed`, where it is given.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .errors import RecipeError
from .hub_source import read_with_datasets
from .recipe import Recipe
from .sections import DataSection
from .sources import SOURCES, Examples, Splits, read_builtin


def load_data(recipe: Recipe) -> Splits:
    """Read the recipe's source and return train, eval and test, none of them None.

    The test split is cut first, so that it stays the same when the validation fraction, the caps or the noise change;
    the caps keep the first rows of a random order, so that a larger cap holds the smaller one's examples.

    Raises:
        RecipeError: The source cannot be read, or is too small to be split.
    """
    section = recipe.data
    if section.source in SOURCES:
        data = read_builtin(section.source, recipe.task, section.path)
    else:
        data = read_with_datasets(section, recipe.task, hub_only=recipe.data_from_hub)
    # One independent stream for each decision: changing one leaves the others alone.
    _, eval_rng, cap_rng, noise_rng = np.random.default_rng(section.seed).spawn(4)
    test_seed = section.seed if section.test_seed is None else section.test_seed
    test_rng, _, test_cap_rng, _ = np.random.default_rng(test_seed).spawn(4)

    train, evaluation, test = data.train, data.eval, data.test
    if test is None:
        train, test = _cut(train, section.test_fraction, test_rng)
    if evaluation is None:
        train, evaluation = _cut(train, section.validation_fraction, eval_rng)
    for examples in (train, evaluation):  # so that a test_seed cuts the test split that it would cut as `seed`
        test_cap_rng.permutation(len(examples))
    train = _cap(train, _train_cap(section, len(train)), cap_rng)
    evaluation = _cap(evaluation, section.eval_samples, cap_rng)
    test = _cap(test, section.test_samples, test_cap_rng)
    if not (len(train) and len(evaluation) and len(test)):
        raise RecipeError(
            f"data.source '{section.source}' leaves {len(train)} training, {len(evaluation)} evaluation and "
            f"{len(test)} test examples; each needs at least one"
        )
    if recipe.task == "instruction-tuning":
        if section.label_noise:
            raise RecipeError(
                f"data.label_noise: {section.label_noise:g}: instruction tuning has no labels; leave it out"
            )
        return Splits(train, evaluation, test, [])
    if len(data.label_names) < 2:
        raise RecipeError(f"data.source '{section.source}' has one class only; classification needs two")
    labels = add_label_noise(train.labels, section.label_noise, len(data.label_names), noise_rng)
    return Splits(dataclasses.replace(train, labels=labels), evaluation, test, data.label_names)


def add_label_noise(labels: np.ndarray, fraction: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of `labels` in which exactly `round(fraction * len(labels))` are wrong.

    Each is replaced by a class drawn uniformly from the `classes - 1` others.
    """
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    noisy[chosen] = (labels[chosen] + rng.integers(1, classes, size=len(chosen))) % classes
    return noisy


def _cut(examples: Examples, fraction: float, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """Split off a random `fraction`; returns (rest, piece)."""
    order = rng.permutation(len(examples))
    size = round(fraction * len(examples))
    return examples.select(np.sort(order[size:])), examples.select(np.sort(order[:size]))


def _train_cap(section: DataSection, available: int) -> int | None:
    """How many training examples to keep at most; None: all."""
    if section.train_fraction is None:
        return section.train_samples
    share = max(1, round(section.train_fraction * available))
    return share if section.train_samples is None else min(share, section.train_samples)


def _cap(examples: Examples, cap: int | None, rng: np.random.Generator) -> Examples:
    order = rng.permutation(len(examples))
    return examples if cap is None else examples.select(np.sort(order[:cap]))
