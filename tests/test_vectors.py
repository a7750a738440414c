"""Arithmetic on lists of tensors against NumPy in float64."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sharpness import vectors
from hf_sharpness.vectors import lengths


def two_vectors(dtype: torch.dtype = torch.float64) -> tuple[vectors.Vector, vectors.Vector]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (), (2, 1, 2)]
    return tuple([torch.randn(s, generator=generator).to(dtype) for s in shapes] for _ in range(2))


def long(vector: vectors.Vector) -> np.ndarray:
    return np.concatenate([t.double().numpy().ravel() for t in vector])


def test_every_foreach_function_that_is_used_exists() -> None:
    """They are private to torch: this fails, by name, when one moves."""
    trees = [ast.parse(Path(module.__file__).read_text()) for module in (vectors, lengths)]
    used = {
        n.attr
        for tree in trees
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr.startswith("_foreach")
    }
    assert len(used) >= 4
    assert [name for name in used if not hasattr(torch, name)] == []


def test_foreach_functions_stay_in_two_modules_but_for_the_restore_in_one_call() -> None:
    package = Path(vectors.__file__).parents[1]
    users = {str(p.relative_to(package)) for p in package.rglob("*.py") if "torch._foreach" in p.read_text()}
    arithmetic = {"vectors/__init__.py", "vectors/lengths.py"}
    assert users == {*arithmetic, "engine/passes.py", "engine/watch.py"}  # which looks for one in what others call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norm_is_one_norm_over_all_tensors_accumulated_in_fp32_or_wider(dtype: torch.dtype) -> None:
    a, _ = two_vectors(dtype)
    result = vectors.norm(a)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(result) == pytest.approx(np.linalg.norm(long(a)), rel=1e-6)


def test_norm_of_many_small_bf16_values_does_not_saturate() -> None:
    ones = [torch.full((512,), 2.0**-4, dtype=torch.bfloat16) for _ in range(64)]
    assert float(vectors.norm(ones)) == pytest.approx(math.sqrt(512 * 64) / 16, rel=1e-6)


def test_norm_of_tensors_of_different_dtypes() -> None:
    a = [torch.full((2,), 3.0), torch.full((2,), 4.0, dtype=torch.bfloat16)]
    assert float(vectors.norm(a)) == pytest.approx(math.sqrt(2 * 9 + 2 * 16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dot_is_one_product_over_all_tensors_accumulated_in_fp32_or_wider(dtype: torch.dtype) -> None:
    a, b = two_vectors(dtype)
    result = vectors.dot(a, b)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result.shape == ()
    assert float(result) == pytest.approx(long(a) @ long(b), rel=1e-5)


def test_dot_of_tensors_of_different_dtypes() -> None:
    a = [torch.full((2,), 3.0), torch.full((2,), 4.0, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)]
    b = [torch.full((2,), 0.5, dtype=torch.bfloat16), torch.full((2,), -2.0), torch.ones(1)]
    assert float(vectors.dot(a, b)) == pytest.approx(2 * 1.5 - 2 * 8 + 1)


def test_dot_of_many_small_bf16_values_neither_saturates_nor_cancels_to_zero() -> None:
    ones = [torch.full((512,), 2.0**-4, dtype=torch.bfloat16) for _ in range(64)]
    signs = [torch.ones(512, dtype=torch.bfloat16) for _ in range(64)]
    signs[0] = -signs[0]
    assert float(vectors.dot(ones, signs)) == pytest.approx(512 * 62 / 16, rel=1e-6)


def test_dot_of_a_long_fp32_tensor_keeps_its_digits() -> None:
    """Summed one after the other, five million products are off by 1e-5."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(5_000_000, generator=generator) for _ in range(2))
    expected = a.double().numpy() @ b.double().numpy()
    assert float(vectors.dot([a], [b])) == pytest.approx(expected, rel=5e-7)
    assert float(lengths._dot(a, b, piece=2**18)) == pytest.approx(expected, rel=5e-7)
    assert float(vectors.dot([a.view(2500, 2000).t()], [b.view(2500, 2000).t()])) == pytest.approx(expected, rel=5e-7)


def test_an_empty_vector_has_norm_zero_and_takes_every_operation() -> None:
    assert float(vectors.norm([])) == 0.0
    assert float(vectors.dot([], [])) == 0.0
    vectors.scale_([], torch.tensor(2.0))
    vectors.add_([], [])
    vectors.copy_([], [])
    assert vectors.clone([]) == []


def test_clone_has_storage_of_its_own() -> None:
    a, _ = two_vectors()
    copy = vectors.clone(a)
    a[0].zero_()
    assert copy[0].abs().sum() > 0


def test_displacement_of_sam() -> None:
    g, _ = two_vectors()
    expected = 0.3 * long(g) / np.linalg.norm(long(g))
    vectors.displacement_(g, 0.3, vectors.norm(g), vectors.norm)
    np.testing.assert_allclose(long(g), expected, rtol=1e-12)


def test_displacement_of_asam() -> None:
    g, w = two_vectors()
    flat_g, flat_w = long(g), long(w)
    t = np.abs(flat_w)
    expected = 0.3 * t**2 * flat_g / np.linalg.norm(t * flat_g)
    vectors.displacement_(g, 0.3, vectors.norm(g), vectors.norm, weights=w)
    np.testing.assert_allclose(long(g), expected, rtol=1e-12)
    assert np.linalg.norm(long(g) / t) == pytest.approx(0.3)


def test_a_zero_gradient_makes_a_zero_displacement() -> None:
    g = [torch.zeros(3)]
    vectors.displacement_(g, 0.3, vectors.norm(g), vectors.norm)
    assert torch.equal(g[0], torch.zeros(3))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.3, math.pi / 2, 3.0, math.pi - 1e-9, math.pi])
def test_angle(angle: float) -> None:
    """Also where arccos of the dot product would lose all digits."""
    a = [torch.tensor([2.0, 0.0], dtype=torch.float64)]
    b = [5.0 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)]
    scratch = [torch.empty(2, dtype=torch.float64)]
    result = vectors.angle(a, b, vectors.norm(a), vectors.norm(b), scratch, a)
    assert float(result) == pytest.approx(angle, abs=1e-12, rel=1e-9)


def test_angle_of_nearly_parallel_fp32_vectors_is_never_nan() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        a = [torch.randn(1000, generator=generator)]
        b = [a[0] * (1 + 1e-7 * torch.randn(1000, generator=generator))]
        assert vectors.angle(a, b, vectors.norm(a), vectors.norm(b), [torch.empty(1000)], a).isfinite()


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.7, 2.0])
def test_slerp_walks_the_great_circle(alpha: float) -> None:
    """v(alpha) has norm 1 and lies alpha * psi away from v0 in the plane of both."""
    psi = 0.8
    c0, c1 = vectors.slerp_weights(torch.tensor(psi, dtype=torch.float64), alpha)
    v = float(c0) * np.array([1.0, 0.0]) + float(c1) * np.array([math.cos(psi), math.sin(psi)])
    np.testing.assert_allclose(v, [math.cos(alpha * psi), math.sin(alpha * psi)], atol=1e-12)


def test_slerp_at_alpha_one_is_exactly_v1() -> None:
    for psi in torch.linspace(0, math.pi, 50):
        assert [float(c) for c in vectors.slerp_weights(psi, 1.0)] == [0.0, 1.0]


@pytest.mark.parametrize("psi", [0.0, 1e-9, math.pi])
def test_slerp_of_parallel_or_opposite_vectors_is_v1(psi: float) -> None:
    assert [float(c) for c in vectors.slerp_weights(torch.tensor(psi), 1.6)] == [0.0, 1.0]


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_norm_of_single_and_double_precision_in_either_order(first: torch.dtype) -> None:
    second = torch.float64 if first == torch.float32 else torch.float32
    a = [torch.full((2,), 3.0, dtype=first), torch.full((2,), 4.0, dtype=second), torch.ones(1, dtype=first)]
    assert vectors.norm(a).dtype == torch.float64
    assert float(vectors.norm(a)) == pytest.approx(math.sqrt(2 * 9 + 2 * 16 + 1))


def test_complex_numbers_are_two_real_ones() -> None:
    weight = torch.tensor([3 + 4j, 0 - 12j], dtype=torch.complex64)
    real = vectors.local([weight])
    assert float(vectors.norm(real)) == pytest.approx(13.0)
    vectors.scale_(real, 2.0)
    assert weight.tolist() == [6 + 8j, -24j]  # the memory is shared
    assert torch.equal(vectors.shaped_like(real[0], weight), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_whose_squares_overflow(dtype: torch.dtype) -> None:
    a = [torch.full((3,), 2.0**100, dtype=dtype), torch.full((1,), 2.0**101, dtype=dtype), torch.zeros(0, dtype=dtype)]
    assert not vectors.norm(a).isfinite()
    assert float(vectors.norm_of_large(a)) == pytest.approx(math.sqrt(3 + 4) * 2.0**100)
    assert not vectors.norm_of_large([torch.tensor([math.inf])]).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_a_long_tensor_is_accurate(dtype: torch.dtype) -> None:
    long_one = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    a = [torch.ones(3, dtype=dtype), long_one.view(1, -1), torch.ones(2, dtype=torch.float32)]
    exact = math.sqrt(5 + float((long_one.double() ** 2).sum()))
    assert float(vectors.norm(a)) == pytest.approx(exact, rel=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiples_are_told_element_by_element(dtype: torch.dtype) -> None:
    a, _ = two_vectors(dtype)
    a[0][0, 0] = 0.0
    b = [t * 0.37 for t in a]
    assert vectors.is_multiple(b, a, 0.37)
    assert vectors.are_equal(b, [t.clone() for t in b])
    assert not vectors.are_equal(b, a)
    assert not vectors.is_multiple(b, a, 0.3701)
    for change in (0.0, -1.0, 1.001, math.nan):
        changed = [t.clone() for t in b]
        changed[-1].reshape(-1)[0] *= change
        changed[1][0] *= 1.0
        assert not vectors.is_multiple(changed, a, 0.37), change
    tiny = [t.clone() for t in b]
    tiny[1][0] = 1e-20  # where the other has something else: not a matter of the vector's size
    assert not vectors.is_multiple(tiny, a, 0.37)


def test_half_precision_is_no_multiple_of_anything() -> None:
    a, _ = two_vectors(torch.bfloat16)
    assert not vectors.is_multiple(a, a, 1.0)


@pytest.mark.parametrize("on_host", [True, False])
def test_adding_may_spend_what_is_added(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "is_on_host", lambda tensor: on_host)
    a, b = two_vectors()
    expected = long(a) + 0.3 * long(b)
    vectors.add_spending_(a, b, torch.tensor(0.3, dtype=torch.float64))
    np.testing.assert_allclose(long(a), expected, rtol=1e-14)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("degrees", [1e-6, 1.0, 60.0, 89.9, 90.1, 120.0, 179.999999])
def test_angles_keep_their_digits_wherever_they_are_read(
    degrees: float, on_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "is_on_host", lambda tensor: on_host)
    angle = math.radians(degrees)
    a = [torch.tensor([2.0, 0.0], dtype=torch.float64)]
    b = [torch.tensor([3 * math.cos(angle), 3 * math.sin(angle)], dtype=torch.float64)]
    found = vectors.angle(a, b, vectors.norm(a), vectors.norm(b), [torch.empty(2, dtype=torch.float64)], a)
    assert float(found) == pytest.approx(angle, rel=1e-9)


@pytest.mark.parametrize("on_host", [True, False])
def test_the_angle_to_nothing_is_a_right_one(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "is_on_host", lambda tensor: on_host)
    a, b = [torch.ones(3)], [torch.zeros(3)]
    found = vectors.angle(a, b, vectors.norm(a), vectors.norm(b), [torch.empty(3)], a)
    assert float(found) == pytest.approx(math.pi / 2)
