"""Weights in half precision: what is lost of a perturbation is said, and in bf16 nothing of it is lost."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from models import classification, steps_of
from reference import BASES, Spec, by_name
from torch import nn
from torch.nn import functional as F


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
    seen: list[torch.Tensor] = []
    hook = lambda *_: seen.append(nn.utils.parameters_to_vector(model.parameters()).detach().float())  # noqa: E731
    model.register_forward_pre_hook(hook)
    optimizer = BASES[0].torch(model.parameters())
    plain(model, steps_of(classification(8, dtype), 8), optimizer, spec.ours(model, optimizer))
    return seen


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
