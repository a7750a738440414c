"""Products with the Hessian, its largest eigenvalues and its trace, against exact ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models import Net, classification, collate, exact_hessian
from surfaces import MATRIX, flat, quadratic
from torch import Tensor, nn

from hf_sharpness.measure.batches import Batches
from hf_sharpness.measure.hessian import Hessian
from hf_sharpness.measure.surface import Surface


@pytest.mark.parametrize(("dtype", "product", "value"), [(torch.float64, 1e-8, 1e-8), (torch.float32, 2e-3, 1e-3)])
def test_a_small_network(dtype: torch.dtype, product: float, value: float) -> None:
    """Trained for a while, so that the largest eigenvalue stands out. 83 weights: Lanczos, not the dense Hessian."""
    items = classification(60, dtype)
    model = Net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        model(**collate(items))["loss"].backward()
        optimizer.step()
    optimizer.zero_grad()
    double = Net().double()
    double.load_state_dict(model.state_dict())
    h = exact_hessian(double, collate(classification(60)))
    values = torch.linalg.eigvalsh(h).flip(0)
    with Surface(model, Batches(items, collate, 16)) as surface:
        hessian = Hessian(surface)
        v = surface.normal(7)
        found = flat(hessian.product(v)).double()
        expected = h @ flat(v).double()
        assert (found - expected).norm() <= product * expected.norm()
        top = hessian.eigenvalues(3)
        np.testing.assert_allclose(top.values, values[:3].numpy(), rtol=max(value, 1e-6))
        assert max(top.residuals) <= 2e-3 * top.values[0]
        assert top.products >= 20
        signs = [flat([t.sign() for t in surface.normal(1 + n)]).double() for n in range(4)]
        samples = np.array([float(s @ h @ s) for s in signs])
        trace = hessian.trace(4)
    assert trace.value == pytest.approx(samples.mean(), rel=5 * value)
    assert trace.standard_error == pytest.approx(samples.std(ddof=1) / 2, rel=20 * value)
    assert trace.probes == 4


def test_a_quadratic_with_three_weights() -> None:
    with quadratic() as surface:
        hessian = Hessian(surface)
        found = hessian.eigenvalues(2)
        expected = np.linalg.eigvalsh(MATRIX.numpy())[::-1]
        np.testing.assert_allclose(found.values, expected[:2], rtol=1e-8)
        assert max(found.residuals) < 1e-8
        assert hessian.trace(1).standard_error is None
        zero = hessian.product([torch.zeros_like(t) for t in surface.saved])
        assert not flat(zero).any()


def test_a_diagonal_hessian_has_its_trace_after_one_probe() -> None:
    from surfaces import EXAMPLES, START, Quadratic
    from surfaces import collate as stacked

    diagonal = torch.diag(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    with Surface(Quadratic(diagonal, START), Batches(EXAMPLES, stacked, 3)) as surface:
        assert Hessian(surface).trace(1).value == pytest.approx(2.5, rel=1e-8)


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def berts() -> tuple[Any, Any, list[Any]]:
    """One with eager attention, the same with SDPA, and data without the padding token, whose gradient is left out."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=16, max_position_embeddings=8, attn_implementation="eager", **SIZES)
    eager = BertForSequenceClassification(config).double().eval()
    sdpa = BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=8, **SIZES)).double()
    sdpa.load_state_dict(eager.state_dict())
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    items = [
        {"input_ids": torch.tensor([1 + i % 15, 1 + (3 * i) % 15, 2]), "labels": torch.tensor(i % 2)} for i in range(32)
    ]
    return eager, sdpa, items


def test_a_transformer_as_double_backward_has_it() -> None:
    eager, sdpa, items = berts()
    params = list(eager.parameters())
    v = [torch.randn(p.shape, dtype=torch.float64) for p in params]
    slope = torch.autograd.grad(eager(**collate(items)).loss, params, create_graph=True)
    exact = flat(list(torch.autograd.grad(sum((a * b).sum() for a, b in zip(slope, v, strict=True)), params)))
    for own in (eager, sdpa):
        with Surface(own, Batches(items, collate, 10)) as surface:
            found = flat(Hessian(surface).product(v))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-7 * float(exact.abs().max()))


def test_a_transformer_with_eager_attention_as_curvlinops_has_it() -> None:
    """But for the weights of its LayerNorms, where curvlinops 3.0.1 on torch 2.13 differs from double backward."""
    curvlinops = pytest.importorskip("curvlinops")
    from scipy.sparse.linalg import eigsh

    eager, sdpa, items = berts()
    for module in [*eager.modules(), *sdpa.modules()]:
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(False)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = eager

        def forward(self, x: Any) -> Tensor:
            return self.model(input_ids=x).logits

    batch = collate(items)
    theirs = curvlinops.HessianLinearOperator(
        Logits(),
        nn.CrossEntropyLoss(),
        [p for p in eager.parameters() if p.requires_grad],
        [(batch["input_ids"], batch["labels"])],
        check_deterministic=False,
    ).to_scipy()
    values = eigsh(theirs, k=2, which="LA", tol=1e-9)[0][::-1]
    for own in (eager, sdpa):
        with Surface(own, Batches(items, collate, 10)) as surface:
            hessian = Hessian(surface)
            v = surface.normal(3)
            found = flat(hessian.product(v)).numpy()
            np.testing.assert_allclose(found, theirs @ flat(v).numpy(), rtol=0, atol=1e-7 * np.abs(found).max())
            np.testing.assert_allclose(hessian.eigenvalues(2).values, values, rtol=1e-5)
