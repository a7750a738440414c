"""What is measured of a run, by its definition: averages of weights, rounding, likelihood, flatness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerState

from hf_sharpness.compare import measures
from hf_sharpness.compare.averaging import Averaging, averaged_weights

pytest.importorskip("rliable")
pytest.importorskip("torchmetrics")
pytest.importorskip("sklearn")


def model_of(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def test_averages_are_those_of_their_definitions():
    averaging, steps = Averaging(("swa", "ema")), 40
    model, weights = model_of(0.0), torch.linspace(1, 5, steps).square().tolist()
    for step, value in enumerate(weights, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        averaging.on_step_end(None, TrainerState(global_step=step, max_steps=steps), None, model=model)
    swa = np.mean(weights[30:])  # the last quarter
    ema, decay = weights[0], 1 - 1 / 4  # over a tenth of 40 steps
    for value in weights[1:]:
        ema = decay * ema + (1 - decay) * value
    for variant, expected in (("swa", swa), ("ema", ema)):
        with averaged_weights(model, averaging.averages[variant]):
            assert model.weight.item() == pytest.approx(expected, rel=1e-5)
        assert model.weight.item() == weights[-1]


def test_positions_and_counters_are_not_averaged():
    """torch cannot average whole numbers on a CUDA device."""
    model, averaging = nn.BatchNorm1d(1), Averaging(("swa", "ema"))
    for step in range(1, 9):
        model.num_batches_tracked.fill_(step)
        model.running_mean.fill_(step)
        averaging.on_step_end(None, TrainerState(global_step=step, max_steps=8), None, model=model)
    for average in averaging.averages.values():
        assert average.module.num_batches_tracked.item() == 8
    assert averaging.averages["swa"].module.running_mean.item() == 7.5  # of the last quarter


def test_averaged_weights_are_taken_back_whatever_happens():
    model = model_of(1.0)
    average = AveragedModel(model_of(2.0))

    def interrupted() -> None:
        with averaged_weights(model, average):
            assert model.weight.item() == 2.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.weight.item() == 1.0


def test_rounding_is_to_nearest_within_each_row():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.7, -0.31, 0.04], [70.0, -31.0, 4.0]]))
    own = [parameter.clone() for parameter in model.parameters()]
    with measures.rounded_weights(model, 4):  # 7 levels either side
        expected = torch.tensor([[0.7, -0.3, 0.0], [70.0, -30.0, 0.0]])
        torch.testing.assert_close(model.weight.detach(), expected)
        assert torch.equal(model.bias, own[1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own, strict=True))


def test_likelihood_and_calibration_in_closed_form():
    logits = np.log(np.array([[0.8, 0.2]] * 10))
    labels = np.array([0] * 6 + [1] * 4)
    found = measures.likelihood_and_calibration(logits, labels)
    assert found["nll"] == pytest.approx(-(0.6 * np.log(0.8) + 0.4 * np.log(0.2)), rel=1e-5)
    assert found["calibration_error"] == pytest.approx(0.2, abs=1e-5)  # sure of .8, right in .6


def test_flatness_in_closed_form():
    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([3.0, 4.0]))

        def forward(self, x: torch.Tensor):
            return type("Output", (), {"loss": 0.5 * self.w.square().sum() * x.mean()})

    class Trainer:
        model, train_dataset = Quadratic(), [torch.ones(1)] * 10
        args = type("Args", (), {"per_device_eval_batch_size": 4, "device": torch.device("cpu")})
        data_collator = staticmethod(lambda batch: {"x": torch.stack(batch)})
        _prepare_inputs = staticmethod(lambda inputs: inputs)

    found = measures.flatness(Trainer())
    adaptive = 0.5 * np.array([9.0 * 3, 16.0 * 4]) / np.hypot(9, 16)  # rho T^2 g / |T g| with T = |w|
    assert found == {
        "train_loss": pytest.approx(12.5),
        "gradient_norm": pytest.approx(5.0),
        "weight_norm": pytest.approx(5.0),
        "sharpness": pytest.approx(0.5 * (5.05**2 - 5**2), rel=1e-4),  # |w| = 5 goes to 5.05
        "adaptive_sharpness": pytest.approx(0.5 * (np.square(np.array([3, 4]) + adaptive).sum() - 25), rel=1e-4),
    }
    assert Trainer.model.w.tolist() == [3.0, 4.0]
