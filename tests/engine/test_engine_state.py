"""Randomness and buffers: both passes see the same masks, and a step leaves what one pass leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import BUFFERED, MaskRecorder, Net, buffers_of, classification, steps_of
from reference import BASES, Spec, by_name
from torch import nn

METHODS = by_name("sam", "sam-k3", "wsam-coupled", "wsam-decoupled", "xsam", "xsam-k3")
every_method = pytest.mark.parametrize("spec", METHODS, ids=str)
every_accumulation = pytest.mark.parametrize("accumulation", [1, 3])


@every_accumulation
@every_method
def test_every_pass_of_a_micro_batch_sees_the_same_mask(spec: Spec, accumulation: int, plain: Any) -> None:
    """Probes of the search included; masks of different micro-batches and steps differ."""
    model = Net(MaskRecorder).double()
    optimizer = BASES[0].torch(model.parameters())
    method, recorder = spec.ours(model, optimizer), model.middle
    seen: list[torch.Tensor] = []
    for step in steps_of(classification(48), 8, accumulation, epochs=1)[:2]:
        recorder.masks.clear()
        plain(model, [step], optimizer, method, epoch_starts=())
        assert len(recorder.masks) >= 2 * accumulation
        for index, mask in enumerate(recorder.masks):
            assert torch.equal(mask, recorder.masks[index % accumulation]), index
        seen += recorder.masks[:accumulation]
    assert not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])


@every_accumulation
@every_method
def test_the_random_stream_stands_where_one_pass_leaves_it(spec: Spec, accumulation: int, plain: Any) -> None:
    streams = []
    for with_method in (True, False):
        torch.manual_seed(5)
        model = Net(nn.Dropout)
        optimizer = BASES[0].torch(model.parameters())
        steps = steps_of(classification(48, torch.float32), 8, accumulation)
        plain(model, steps, optimizer, spec.ours(model, optimizer) if with_method else None)
        streams.append(torch.get_rng_state())
    assert torch.equal(*streams)


class Unsteady(nn.Module):
    """Draws one more random number each time it is called."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        torch.rand(self.calls)
        return x


@every_method
def test_the_random_stream_of_a_replay_that_draws_more(spec: Spec, plain: Any) -> None:
    streams = []
    for with_method in (True, False):
        torch.manual_seed(5)
        model = Net(Unsteady)
        optimizer = BASES[0].torch(model.parameters())
        steps = steps_of(classification(8, torch.float32), 8)
        plain(model, steps, optimizer, spec.ours(model, optimizer) if with_method else None)
        streams.append(torch.get_rng_state())
    assert torch.equal(*streams)


@every_accumulation
@pytest.mark.parametrize("layer", BUFFERED)
@every_method
def test_buffers_are_what_one_pass_leaves(spec: Spec, layer: str, accumulation: int, plain: Any) -> None:
    """Step after step, each from the weights it started at."""
    model, twin = Net(BUFFERED[layer]), Net(BUFFERED[layer])
    optimizer = BASES[0].torch(model.parameters())
    method = spec.ours(model, optimizer)
    for step in steps_of(classification(48, torch.float32), 8, accumulation):
        twin.load_state_dict(model.state_dict())
        for (_, target), (_, source) in zip(twin.named_buffers(), model.named_buffers(), strict=True):
            target.copy_(source)
        for batch in step:
            twin(**batch)
        plain(model, [step], optimizer, method, epoch_starts=())
        expected = buffers_of(twin)
        assert expected
        for name, buffer in buffers_of(model).items():
            assert torch.equal(buffer, expected[name]), name


@every_method
def test_modes_and_flags_are_left_alone(spec: Spec, plain: Any) -> None:
    """BatchNorm's momentum, train and eval modes of single layers, requires_grad."""
    model = Net(BUFFERED["batch_norm_1d"])
    model.middle.eval()
    buffers = buffers_of(model)
    optimizer = BASES[0].torch(model.parameters())
    plain(model, steps_of(classification(16, torch.float32), 8), optimizer, spec.ours(model, optimizer))
    assert model.training
    assert not model.middle.training
    assert model.middle.momentum == 0.1
    assert model.middle.track_running_stats
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in buffers_of(model).items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled()


@every_method
def test_parameters_keep_their_identity(spec: Spec, plain: Any) -> None:
    """Same tensors, same storage: views, compiled graphs and flattened parameters stay valid."""
    model = Net()
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    optimizer = BASES[0].torch(model.parameters())
    plain(model, steps_of(classification(16, torch.float32), 8), optimizer, spec.ours(model, optimizer))
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == before
