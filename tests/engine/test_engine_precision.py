"""Weights in half precision: what is lost of a perturbation is said, and in bf16 nothing of it is lost."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from models import Record, classification, steps_of
from reference import BASES, Spec, by_name
from torch import nn
from torch.nn import functional as F

import hf_sharpness


class Wide(nn.Module):
    """Enough weights that a perturbation of length .05 is far below one bf16 step of most of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))
        nn.init.normal_(self.layers[2].weight, std=1.0)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(self.layers(x).float(), labels)}


HALF = [Spec(spec.name, spec.method, spec.settings | {"rho": 0.05}) for spec in by_name("sam", "wsam-coupled", "xsam")]


def visited(spec: Spec, dtype: torch.dtype, plain: Any) -> list[torch.Tensor]:
    """The weights at which the forward passes of one step were made."""
    model = Wide().to(dtype)
    record = Record()  # no pass takes back what another noted there

    def hook(*_: Any) -> None:
        record.items.append(nn.utils.parameters_to_vector(model.parameters()).detach().float())

    model.register_forward_pre_hook(hook)
    optimizer = BASES[0].torch(model.parameters())
    plain(model, steps_of(classification(8, dtype), 8), optimizer, spec.ours(model, optimizer))
    return record.items


def realised(spec: Spec, dtype: torch.dtype, plain: Any) -> float:
    """The length of the perturbation really made, over the one asked for, in one step."""
    seen = visited(spec, dtype, plain)
    return ((seen[1] - seen[0]).norm() / spec.settings["rho"]).item()


def exact_gradient(w: torch.Tensor) -> torch.Tensor:
    """The gradient at these weights, in float64."""
    model = Wide().double()
    nn.utils.vector_to_parameters(w.double(), model.parameters())
    (batch,) = steps_of(classification(8, torch.float64), 8)[0]
    loss = model(**batch)["loss"]
    return nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.filterwarnings("ignore:.*stored in torch.bfloat16")
@pytest.mark.parametrize("spec", HALF, ids=str)
def test_in_bf16_the_whole_perturbation_survives(spec: Spec, plain: Any) -> None:
    """Its component along the request is rho, where rounding to the nearest leaves less than half of it; and the
    gradient's change, which is all that a sharpness-aware step adds, points nearly where it does at the exact w + delta
    (the more weights, the nearer: scripts/half_weights.py)."""
    spec = Spec(spec.name, spec.method, spec.settings | {"rho": 0.001})
    seen = [w.double() for w in visited(spec, torch.bfloat16, plain)]
    w, rho = seen[0], spec.settings["rho"]
    g = exact_gradient(w)
    delta = rho * g / g.norm()
    nearest = (w + delta).bfloat16().double() - w
    along = lambda change: float(change @ delta / rho**2)  # noqa: E731
    assert along(nearest) < 0.5
    assert along(seen[1] - w) == pytest.approx(1.0, abs=0.15)
    wanted, made = exact_gradient(w + delta) - g, exact_gradient(seen[1]) - g
    assert torch.cosine_similarity(wanted, made, dim=0) > 0.85


@pytest.mark.parametrize("spec", HALF, ids=str)
def test_a_swallowed_perturbation_is_not_silent(
    spec: Spec, plain: Any, caplog: Any, recwarn: pytest.WarningsRecorder
) -> None:
    """Refused or loudly warned of, with the remedy, unless nine tenths of it survive."""
    caplog.set_level(logging.WARNING)
    try:
        ratio = realised(spec, torch.bfloat16, plain)
    except (ValueError, RuntimeError) as error:
        said = str(error)
    else:
        said = caplog.text + " ".join(str(w.message) for w in recwarn)
        if 0.9 < ratio < 1.1:
            return
    assert re.search("(?i)float32|fp32", said)


@pytest.mark.parametrize("spec", HALF, ids=str)
def test_float32_takes_the_whole_of_it_in_silence(
    spec: Spec, plain: Any, caplog: Any, recwarn: pytest.WarningsRecorder
) -> None:
    assert realised(spec, torch.float32, plain) == pytest.approx(1.0, rel=1e-4)
    assert not caplog.text
    assert not [w for w in recwarn if "float32" in str(w.message)]


GRID = "ignore:.*stored in torch.bfloat16"


class Probed(Wide):
    """Keeps the linear layers' weights as autocast sees them, at every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()

    @property
    def seen(self) -> list[torch.Tensor]:
        return self.record.items

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(torch.cat([p.detach().bfloat16().double().reshape(-1) for p in self.parameters()]))
        return super().forward(x, labels)


@pytest.mark.filterwarnings(GRID)
def test_every_step_has_its_own_noise(plain: Any) -> None:
    """Without dropout nothing else draws random numbers. The base optimizer takes no step, so every perturbation is the
    same but for its rounding, and their mean comes to the exact one; with the same noise it would not."""
    model = Probed().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = hf_sharpness.SAM(model, optimizer, rho=0.001)
    (batch,) = steps_of(classification(8, torch.bfloat16), 8)[0]

    def closure() -> torch.Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for _ in range(60):
        method.backward(closure)
        optimizer.zero_grad()
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
    w, moved = model.seen[0], torch.stack(model.seen[1::2])
    g = exact_gradient(w)
    delta = 0.001 * g / g.norm()
    one, mean = moved[0] - w, moved.mean(0) - w
    assert float((one - delta).norm()) > 3 * 0.001
    assert float((mean - delta).norm()) < 0.25 * float((one - delta).norm())
    assert float(mean @ delta / 0.001**2) == pytest.approx(1.0, abs=0.05)


def test_every_climb_has_its_own_noise(plain: Any) -> None:
    """Two climbs within a step: their rounding errors are independent."""
    model = Probed().bfloat16()
    with pytest.warns(UserWarning, match="stored in torch.bfloat16"):
        method = hf_sharpness.SAM(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=0.001, steps=2)
    (batch,) = steps_of(classification(8, torch.bfloat16), 8)[0]

    def closure() -> torch.Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    method.backward(closure)
    first, second = model.seen[1] - model.seen[0], model.seen[2] - model.seen[1]
    assert abs(torch.cosine_similarity(first, second, dim=0)) < 0.3


def test_gamma_0_is_the_base_whatever_the_weights_are_stored_in(recwarn: pytest.WarningsRecorder) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for mode in ("coupled", "decoupled"):
            model = Wide().to(dtype)
            hf_sharpness.WSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), gamma=0.0, mode=mode)
    assert not [w for w in recwarn if "stored in" in str(w.message)]
