"""The picture of a run: what it shows follows from what was logged."""

from __future__ import annotations

import pytest

from hf_sharpness.tasks.curves import plot_curves, series

STOCK = [
    {"loss": 2.0, "learning_rate": 1e-3, "epoch": 0.5, "step": 10},
    {"loss": 1.0, "learning_rate": 1e-3, "epoch": 1.0, "step": 20},
    {"eval_loss": 1.1, "eval_accuracy": 0.5, "eval_macro_f1": 0.4, "epoch": 1.0, "step": 20},
    {"train_runtime": 3.0, "step": 20},
]
SHARP = [{**row, "perturbed_loss": row["loss"] + 0.2, "sharpness": 0.2} if "loss" in row else row for row in STOCK]
XSAM = [{**row, "xsam_alpha": 0.7} if "loss" in row else row for row in SHARP]


def test_series():
    assert series(STOCK, "loss") == ([10, 20], [2.0, 1.0])
    assert series(STOCK, "eval_accuracy") == ([20], [0.5])
    assert series(STOCK, "sharpness") == ([], [])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    original = figure_module.Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(figure_module.Figure, "savefig", savefig)
    return figures


@pytest.mark.parametrize(
    ("history", "panels"),
    [
        (STOCK, ["cross-entropy loss", "accuracy", "macro f1"]),
        (SHARP, ["cross-entropy loss", "sharpness", "accuracy", "macro f1"]),
        (XSAM, ["cross-entropy loss", "sharpness", "xsam alpha", "accuracy", "macro f1"]),
        ([], [""]),
    ],
)
def test_one_panel_for_each_kind_of_series(tmp_path, drawn, history, panels):
    path = plot_curves(history, tmp_path / "curves.png", "digits-vit: WSAM (rho 0.05)", ["xsam_alpha", "xsam_psi"])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (figure,) = drawn
    axes = figure.axes
    assert len(axes) == len(panels)
    for axis, label in zip(axes, panels, strict=True):
        assert axis.get_ylabel().startswith(label)
    assert axes[-1].get_xlabel() == "optimizer step"
    assert "WSAM" in figure.get_suptitle()


def test_every_metric_is_drawn_alone_with_its_test_score(tmp_path, drawn):
    plot_curves(STOCK, tmp_path / "curves.png", "x", test={"accuracy": 0.6, "macro_f1": 0.5, "loss": 1.0})
    _, *metrics = drawn[0].axes
    for axis, score, value in zip(metrics, (0.6, 0.5), (0.5, 0.4), strict=True):
        evaluation, test = axis.get_lines()
        assert list(evaluation.get_ydata()) == [value]
        assert set(test.get_ydata()) == {score}
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["evaluation", f"test: {score:.4f}"]
