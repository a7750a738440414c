"""The numbers behind the pictures: on quadratics in closed form, on a function of two weights by a fine grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from surfaces import EXAMPLES, GRADIENT, START, collate, flat, loss_at, quadratic
from torch import Tensor, nn

from hf_sharpness.measure.batches import Batches
from hf_sharpness.measure.lines import alignment, filter_normalised, line, plane, sam_plane
from hf_sharpness.measure.on_request import pictures
from hf_sharpness.measure.surface import Surface


def test_lines_and_planes_on_a_quadratic() -> None:
    with quadratic() as surface:
        _, gradient = surface.gradient()
        other = surface.normal(3)
        found = line(surface, gradient, [-1.0, 0.0, 0.5])
        assert found == pytest.approx([loss_at(START + t * GRADIENT) for t in (-1.0, 0.0, 0.5)], rel=1e-12)
        rows = plane(surface, gradient, other, [0.0, 1.0], [0.0, 0.5, 2.0])
        for y, row in zip([0.0, 0.5, 2.0], rows, strict=True):
            expected = [loss_at(START + x * GRADIENT + y * flat(other)) for x in (0.0, 1.0)]
            assert row == pytest.approx(expected, rel=1e-12)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.norm = nn.Conv2d(2, 3, 2), nn.LayerNorm(4)

    def forward(self, b: Tensor) -> dict[str, Tensor]:
        return {"loss": self.convolution.weight.square().sum()}


def test_every_filter_of_a_direction_is_as_long_as_the_weights() -> None:
    model = Layers()
    with torch.no_grad():
        model.convolution.weight[1] *= 100
    with Surface(model, Batches(EXAMPLES, collate, 3)) as surface:
        names = [name for name, _ in model.named_parameters()]
        found = dict(zip(names, filter_normalised(surface, 1), strict=True))
        again = filter_normalised(surface, 1)
        other = filter_normalised(surface, 2)
    weight = found["convolution.weight"]
    lengths = weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, model.convolution.weight.detach().flatten(1).norm(dim=1))
    assert not any(found[name].any() for name in names if name != "convolution.weight")
    assert all(torch.equal(a, b) for a, b in zip(found.values(), again, strict=True))
    assert not torch.equal(other[names.index("convolution.weight")], weight)


class TwoWeights(nn.Module):
    """A function with a curved valley and several bumps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, b: Tensor) -> dict[str, Tensor]:
        return {"loss": two(*self.w)}


def two(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * x**2 + 0.1 * y**2 + 0.4 * torch.sin(3 * x + 2 * y) + 0.3 * torch.cos(4 * y)


def two_surface() -> Surface:
    return Surface(TwoWeights(), Batches(EXAMPLES, collate, 3))


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.5])
def test_the_maximum_of_a_neighbourhood_in_two_dimensions(rho: float) -> None:
    radii, angles = torch.linspace(0, rho, 400, dtype=torch.float64), torch.linspace(0, 2 * math.pi, 4001).double()
    xs, ys = 0.3 + radii[:, None] * angles.cos(), -0.2 + radii[:, None] * angles.sin()
    losses = two(xs, ys)
    place = int(losses.argmax())
    highest = torch.tensor([xs.flatten()[place] - 0.3, ys.flatten()[place] + 0.2])
    with two_surface() as surface:
        found = alignment(surface, rho, most_steps=4, ascents=40)
        assert found.maximum == pytest.approx(float(losses.max()), abs=2e-4)
        assert max(found.spread) == found.maximum
        _, g0 = surface.gradient()
        cosine = float(flat(g0) @ highest / flat(g0).norm() / highest.norm())
        assert found.of_gradient[0] == pytest.approx(cosine, abs=0.02)
        # k = 1: the displacement is along g_0, the gradient is the one there.
        assert found.of_displacement[:2] == [None, pytest.approx(found.of_gradient[0], abs=1e-9)]
        _, g1 = surface.gradient((rho / float(flat(g0).norm()), g0))
        cosine = float(flat(g1) @ highest / flat(g1).norm() / highest.norm())
        assert found.of_gradient[1] == pytest.approx(cosine, abs=0.02)
        # k = 2 by hand.
        half = [t * (rho / 2 / float(flat(g0).norm())) for t in g0]
        _, slope = surface.gradient((1.0, half))
        moved = flat(half) + rho / 2 * flat(slope) / flat(slope).norm()
        assert found.of_displacement[2] == pytest.approx(
            float(moved @ highest / moved.norm() / highest.norm()), abs=0.02
        )


def test_the_plane_of_g0_and_g1() -> None:
    """In two dimensions it is the whole plane, turned so that g_0 lies to the right."""
    rho = 0.4
    with two_surface() as surface:
        found = sam_plane(surface, rho, resolution=9)
        start = torch.tensor([0.3, -0.2], dtype=torch.float64)
        g0 = flat(surface.gradient()[1])
        e0 = g0 / g0.norm()
        g1 = flat(surface.gradient((rho, [e0]))[1])
    d1 = g1 / g1.norm()
    e1 = d1 - (d1 @ e0) * e0
    e1 = e1 / e1.norm()
    assert found.angle == pytest.approx(math.degrees(math.acos(float(d1 @ e0))), rel=1e-9)
    assert found.g1 == pytest.approx((float(d1 @ e0), float(d1 @ e1)), rel=1e-9)
    for i, y in enumerate(found.ys):
        for j, x in enumerate(found.xs):
            assert found.losses[i][j] == pytest.approx(float(two(*(start + x * e0 + y * e1))), abs=1e-10)
    for radius, along_g0, along_g1 in zip(found.radii, found.along_g0, found.along_g1, strict=True):
        assert along_g0 == pytest.approx(float(two(*(start + radius * e0))), abs=1e-10)
        assert along_g1 == pytest.approx(float(two(*(start + radius * d1))), abs=1e-10)
    psi = math.acos(float(d1 @ e0))
    turned = [start + 0.8 * (math.cos(a * psi) * e0 + math.sin(a * psi) * e1) for a in np.arange(21) / 10]
    assert found.alpha == float(np.argmax([float(two(*w)) for w in turned]) / 10)
    later = [r for r, a, b in zip(found.radii, found.along_g0, found.along_g1, strict=True) if r and b > a]
    if found.overtakes is None:
        assert found.along_g1[-1] <= found.along_g0[-1]
    else:
        assert all(r in later for r in found.radii if r >= found.overtakes)


def test_proposition_1_on_a_quadratic() -> None:
    """g_0 is the steeper at w_0, and g_1, turned to the larger curvature, is the higher further out."""
    with quadratic() as surface:
        found = sam_plane(surface, 1.0, resolution=41)
    assert found.along_g0[1] > found.along_g1[1]
    assert found.overtakes is not None
    assert found.along_g1[-1] > found.along_g0[-1]
    assert 0 < found.angle < 90


def test_the_way_to_another_model() -> None:
    target = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with quadratic() as surface:
        towards = surface.towards({"head": target[:1], "rest": target[1:]})
        (picture,) = pictures(surface, (), 0.1, 7, 0, ("there", towards))
    name, found = picture
    assert name == "path"
    assert found["to"] == "there"
    expected = [loss_at(START + t * (target - START)) for t in found["positions"]]
    assert found["losses"]["train"] == pytest.approx(expected, rel=1e-12)
    assert found["positions"][0] == -0.25
    assert found["positions"][-1] == 1.25
