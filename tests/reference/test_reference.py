"""The references themselves, against torch's optimizers and against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, classification, steps_of

from reference import BASES, Base, Sam, Wsam, Xsam, linear_schedule, reference_run

STEPS = steps_of(classification(64), 8, epochs=4)


@pytest.mark.parametrize("base", BASES, ids=str)
def test_bases_are_torchs(base: Base, plain: Any) -> None:
    lrs = linear_schedule(1.0, 3, len(STEPS))
    model = Net().double()
    records = reference_run(model, STEPS, None, base.reference(), [base.lr * lr for lr in lrs], max_norm=0.5)
    weights = plain(model, STEPS, base.torch(model.parameters()), lrs=lrs, max_norm=0.5)
    torch.testing.assert_close([record.weights for record in records], weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("special", "general"),
    [
        (Wsam(rho=0.2, mode="coupled", gamma=0.5), Sam(rho=0.2)),
        (Xsam(rho=0.2, alpha=1.0), Sam(rho=0.2)),
        (Xsam(rho=0.3, alpha=1.0, steps=3), Sam(rho=0.3, steps=3)),
        (Wsam(rho=0.2, mode="decoupled", gamma=0.9), Wsam(rho=0.2, mode="coupled", gamma=0.9)),
    ],
)
def test_special_cases(special: Any, general: Any) -> None:
    runs = [reference_run(Net(), STEPS, method, lrs=[0.1] * len(STEPS)) for method in (special, general)]
    torch.testing.assert_close(runs[0][-1].weights, runs[1][-1].weights, rtol=1e-12, atol=1e-12)
