"""Classification metrics in numpy, and local `evaluate` scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RecipeError, first_line, nearest

_TIMING = ("runtime", "per_second", "preparation_time")


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the share of predictions that equal their reference."""
    return float(np.mean(predictions == references))


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the unweighted mean, over the classes that occur in either argument, of F1 = 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in np.union1d(predictions, references):
        hits = np.sum((predictions == label) & (references == label))
        scores.append(2 * hits / (np.sum(predictions == label) + np.sum(references == label)))
    return float(np.mean(scores))


def scores(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Those of Trainer's metrics that begin with `prefix_`, without it, and without those that measure time."""
    named = {name.removeprefix(f"{prefix}_"): name for name in metrics if name.startswith(f"{prefix}_")}
    return {short: metrics[name] for short, name in sorted(named.items()) if not short.endswith(_TIMING)}


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy, "macro_f1": macro_f1}


def build_compute_metrics(names: list[str]) -> Callable[[Any], dict[str, float]]:
    """Return the function Trainer calls with an `EvalPrediction` of logits and class ids.

    Args:
        names: `accuracy`, `macro_f1`, or the path of a local metric script (or its folder) for `evaluate.load`.

    Raises:
        RecipeError: An unknown name, `evaluate` is missing, or the script cannot be loaded.
    """
    scripts = {name: _load_script(name) for name in names if name not in METRICS}

    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions
        logits = logits[0] if isinstance(logits, tuple) else logits  # some models return more than their logits
        predicted, references = np.argmax(logits, axis=-1), np.asarray(prediction.label_ids)
        results: dict[str, float] = {}
        for name in names:
            if name in scripts:
                results.update(scripts[name].compute(predictions=predicted, references=references))
            else:
                results[name] = METRICS[name](predicted, references)
        return results

    return compute


def check_best(arguments: Any, names: list[str]) -> None:
    """Make sure that the metric by which the best model is chosen will be there.

    Args:
        arguments: The training arguments.
        names: The recipe's metrics; what a script of one's own returns is not known before.

    Raises:
        RecipeError: It is none of them.
    """
    wanted = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if set(names) <= set(METRICS) and wanted not in ("loss", *names):
        raise RecipeError(
            f"training.metric_for_best_model: '{wanted}' is neither the loss nor one of the recipe's metrics "
            f"({', '.join(names)}){nearest(wanted, ['loss', *names])}"
        )


def _load_script(name: str) -> Any:
    if not Path(name).exists():
        raise RecipeError(
            f"metrics: '{name}' is neither {' nor '.join(METRICS)} nor the path of a local metric "
            f"script{nearest(name, METRICS)}"
        )
    try:
        import evaluate
    except ImportError:
        raise RecipeError(
            f"metrics: the script '{name}' needs `evaluate`; install it with `pip install evaluate`"
        ) from None
    try:
        return evaluate.load(name)
    except Exception as error:  # the script is the user's code
        raise RecipeError(f"metrics: '{name}' cannot be loaded: {first_line(error)}") from error
