"""What flatness is said to buy besides accuracy, measured on one final model: none of it is part of a verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

SHARPNESS_RHO = 0.05
ADAPTIVE_RHO = 0.5
TRAINING_EXAMPLES = 512
NOISE_SHARE = 0.1
"""Standard deviation of the input noise, as a share of the range of the pixels."""

NAMES = {
    "nll": "negative log-likelihood",
    "calibration_error": "calibration error",
    "at_8_bits": "with weights of 8 bits",
    "at_4_bits": "with weights of 4 bits",
    "under_noise": "under input noise",
    "on_second_test": "on the second data set",
    "train_loss": "training loss",
    "generalization_gap": "generalisation gap",
    "sharpness": "sharpness at the end",
    "adaptive_sharpness": "adaptive sharpness",
    "gradient_norm": "gradient norm",
    "weight_norm": "weight norm",
}
"""Measure -> how a table calls it."""


def likelihood_and_calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Negative log-likelihood (nats) and the calibration error over 15 bins (arXiv 1706.04599, by torchmetrics).

    Args:
        logits: [examples, classes].
        labels: [examples], class ids.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    scores, references = torch.from_numpy(np.asarray(logits, dtype=np.float32)), torch.from_numpy(np.asarray(labels))
    if not bool(torch.isfinite(scores).all()):
        return {"nll": float("nan"), "calibration_error": float("nan")}
    error = multiclass_calibration_error(scores.softmax(-1), references, num_classes=scores.shape[-1], n_bins=15)
    return {"nll": float(nn.functional.cross_entropy(scores, references)), "calibration_error": float(error)}


@contextlib.contextmanager
def rounded_weights(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside, every weight with two dimensions or more is rounded to `bits` bits; afterwards it is what it was.

    Round to nearest, symmetric, one scale for each row (output channel): 2^(bits-1) - 1 levels either side of zero.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    own = [weight.detach().clone() for weight in weights]
    top = 2 ** (bits - 1) - 1
    try:
        with torch.no_grad():
            for weight in weights:
                rows = weight.flatten(1)
                scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / top
                weight.copy_(((rows / scale).round() * scale).view_as(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, own, strict=True):
                weight.copy_(value)


class NoisyImages(Dataset):
    """A data set whose `pixel_values` carry Gaussian noise, the same for an image in every run."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        pixels = torch.stack([dataset[index]["pixel_values"] for index in range(min(64, len(dataset)))])
        self.deviation = NOISE_SHARE * float(pixels.max() - pixels.min())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self.dataset[index])
        pixels = example["pixel_values"]
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
        example["pixel_values"] = pixels + self.deviation * noise.to(pixels)
        return example


def flatness(trainer: Any) -> dict[str, float]:
    """How flat the model's minimum is on the first 512 training examples, without dropout, and its loss there.

    Figures to look at: how sharp a minimum is does not predict how well it generalises (arXiv 2302.07011).

    Returns:
        ``train_loss``, ``gradient_norm``, ``weight_norm`` (of the trained weights), ``sharpness``, that is
        L(w + rho g/|g|) - L(w) at rho .05, and ``adaptive_sharpness``, ASAM's at rho .5. NaN where there is none.
    """
    from ..loop import SAM

    model, closure = trainer.model, _loss_on_training_data(trainer)
    trained = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval()
    optimizer = torch.optim.SGD(trained, lr=0.0)
    found = {"weight_norm": float(torch.stack([p.detach().double().norm() for p in trained]).norm())}
    try:
        for name, rho in (("sharpness", SHARPNESS_RHO), ("adaptive_sharpness", ADAPTIVE_RHO)):
            model.zero_grad()
            sam = SAM(model, optimizer, rho=rho, adaptive=name == "adaptive_sharpness")
            loss = float(sam.backward(closure))
            found[name] = float(sam.metrics.get("sharpness", float("nan")))  # none where the gradient is no number
            if name == "sharpness":
                found["train_loss"] = loss
                found["gradient_norm"] = float(sam.metrics.get("ascent_grad_norm", float("nan")))
    finally:
        model.zero_grad()
        model.train(training)
    return found


def _loss_on_training_data(trainer: Any) -> Callable[[], torch.Tensor]:
    """Computes the mean loss over the first training examples, and adds up its gradient."""
    examples = [trainer.train_dataset[i] for i in range(min(TRAINING_EXAMPLES, len(trainer.train_dataset)))]
    size = trainer.args.per_device_eval_batch_size
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]

    def closure() -> torch.Tensor:
        total = torch.zeros((), device=trainer.args.device)
        for batch in batches:
            inputs = trainer._prepare_inputs(trainer.data_collator(batch))
            loss = trainer.model(**inputs).loss * (len(batch) / len(examples))
            loss.backward()
            total += loss.detach()
        return total

    return closure
