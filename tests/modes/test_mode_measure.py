"""What is measured on two ranks is what one process measures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from launch import Ranks
from models import Net, classification, collate, exact_hessian
from torch.nn.utils import vector_to_parameters

from hf_sharpness.measure.batches import some_of

Launcher = Callable[[str], Ranks]


def test_ddp_measures_what_one_process_does(ranks: Launcher) -> None:
    """In plain torch, over all thirteen examples at once; the training itself is not changed by it."""
    launched = ranks("cases_measure")
    items = classification(80, seed=5)
    batch = collate([items[number] for number in some_of(80, 13)])
    model = Net().double()
    for plain, found in zip(launched["ddp-plain"], launched["ddp-measured"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain["weights"], found["weights"], strict=True))
        assert [entry["step"] for entry in found["log"]] == [2, 4]
        for entry in found["log"]:
            weights = found["weights"][entry["step"] - 1]
            vector_to_parameters(weights, model.parameters())
            output = model(**batch)
            g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(output["loss"], list(model.parameters()))])
            assert entry["measure_loss"] == pytest.approx(output["loss"].item(), rel=1e-12)
            assert entry["measure_gradient_norm"] == pytest.approx(g.norm().item(), rel=1e-10)
            wrong = output["logits"].argmax(-1) != batch["labels"]
            assert entry["measure_error"] == pytest.approx(wrong.double().mean().item())
            vector_to_parameters(weights + 0.05 * g / g.norm(), model.parameters())
            rise = model(**batch)["loss"].item() - output["loss"].item()
            assert entry["measure_sharpness_rho_0.05"] == pytest.approx(rise, rel=1e-8)
        vector_to_parameters(found["weights"][-1], model.parameters())
        top = torch.linalg.eigvalsh(exact_hessian(model, batch))[-1].item()
        assert found["hessian"][0] == pytest.approx(top, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["fsdp2", "hsdp"])
def test_sharded_weights_give_the_same_numbers(wrapper: str, ranks: Launcher) -> None:
    launched = ranks("cases_measure")
    for ddp, sharded in zip(launched["llama_by-ddp"], launched[f"llama_by-{wrapper}"], strict=True):
        for a, b in zip(ddp["log"], sharded["log"], strict=True):
            assert a.keys() == b.keys()
            assert {"measure_critical_sharpness", "measure_worst_sharpness_rho_0.1"} <= a.keys()
            for key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-9), key
        np.testing.assert_allclose(sharded["hessian"], ddp["hessian"], rtol=1e-4)
