"""Thousands of steps: nothing grows, nothing drifts."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from launch import Ranks, launch
from models import Net, classification
from reference import Spec
from specs_of_modes import METHODS, SCOPED
from torch import nn

import hf_sharpness

psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow
by_method = pytest.mark.parametrize("spec", METHODS, ids=str)
MEGABYTE = 2**20
PACKAGE = str(Path(hf_sharpness.__file__).with_name("*"))


class Gauge(transformers.TrainerCallback):
    """At every 500th step: live tensors, memory allocated by lines of this package, memory of the process."""

    def __init__(self) -> None:
        self.tensors: list[int] = []
        self.allocated: list[int] = []
        self.resident: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 500:
            return
        gc.collect()
        self.tensors.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
        snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, PACKAGE)])
        self.allocated.append(sum(trace.size for trace in snapshot.traces))
        self.resident.append(psutil.Process().memory_info().rss)


@by_method
@pytest.mark.shows(
    mode="2000 steps in the Trainer: memory flat, values finite",
    brief="2000 steps: memory flat, values finite",
    result="clean",
)
def test_nothing_grows(spec: Spec, train: Any) -> None:
    """With dropout and BatchNorm: as many live tensors after 2000 steps as after 500, but for what the test keeps."""
    model = Net(lambda: nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(8)))
    gauge = Gauge()
    tracemalloc.start()
    try:
        run = train(
            model,
            classification(64, torch.float32),
            **spec.arguments(),
            max_steps=2000,
            logging_steps=250,
            callbacks=[gauge],
        )
    finally:
        tracemalloc.stop()
    kept = [500, 1000, 1500, 2000]  # the fixture's own record: one tensor of weights a step
    counts = [tensors - steps for tensors, steps in zip(gauge.tensors, kept, strict=True)]
    assert max(counts) - min(counts) <= 2
    assert 0 < gauge.allocated[-1] < gauge.allocated[0] + 0.1 * MEGABYTE
    assert gauge.resident[-1] - gauge.resident[0] < 24 * MEGABYTE
    assert torch.stack(run.weights).isfinite().all()
    assert all(torch.isfinite(torch.tensor(run.series("sharpness"))))


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return launch("cases_soak", tmp_path_factory.mktemp("soak"), everything=True, timeout=1500)


@pytest.mark.parametrize(("scope", "spec"), [(s.settings["scope"], s) for s in SCOPED], ids=str)
@pytest.mark.shows(mode="DDP, scope {scope}: replicas after 200 steps", result="exact")
def test_replicas_after_200_steps(scope: str, spec: Spec, soaked: Ranks) -> None:
    first, second = soaked[f"two_hundred-{spec}"]
    assert first.isfinite().all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("spec", [s for s in SCOPED if s.settings["scope"] == "global"], ids=str)
@pytest.mark.shows(
    mode="DDP: replicas after 2000 steps, memory flat", brief="DDP: replicas after 2000 steps", result="exact"
)
def test_replicas_after_2000_steps(spec: Spec, soaked: Ranks) -> None:
    (first, growth), (second, other_growth) = soaked[f"two_thousand-{spec}"]
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert max(growth, other_growth) < 24 * MEGABYTE
