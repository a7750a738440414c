"""Accuracy and macro-F1 against scikit-learn; `evaluate` scripts from a local path."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.metrics import accuracy, build_compute_metrics, macro_f1

SCRIPT = """
import datasets
import evaluate


class Errors(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="number of wrong predictions", citation="", inputs_description="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        return {"errors": float(sum(p != r for p, r in zip(predictions, references)))}
"""


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed):
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    predictions, labels = rng.integers(0, 3 + seed, 40), rng.integers(0, 6, 40)  # some classes are never predicted
    assert accuracy(predictions, labels) == pytest.approx(reference.accuracy_score(labels, predictions))
    assert macro_f1(predictions, labels) == pytest.approx(reference.f1_score(labels, predictions, average="macro"))


def test_by_hand():
    predictions, labels = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
    assert accuracy(predictions, labels) == 0.5
    assert macro_f1(predictions, labels) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_logits_may_come_with_more_outputs():
    logits = np.array([[0.1, 0.9], [0.8, 0.2]])
    for predictions in (logits, (logits, np.zeros(3))):
        result = build_compute_metrics(["accuracy"])(
            SimpleNamespace(predictions=predictions, label_ids=np.array([1, 1]))
        )
        assert result == {"accuracy": 0.5}


def test_a_local_evaluate_script(tmp_path):
    pytest.importorskip("evaluate")
    script = tmp_path / "errors.py"
    script.write_text(SCRIPT)
    compute = build_compute_metrics(["accuracy", str(script)])
    logits = np.eye(3)[[0, 1, 2, 2]]
    result = compute(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 1, 1])))
    assert result == {"accuracy": 0.5, "errors": 2.0}


def test_an_unknown_metric_is_named():
    with pytest.raises(RecipeError, match=r"'acuracy'.*did you mean 'accuracy'"):
        build_compute_metrics(["acuracy"])
