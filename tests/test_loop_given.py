"""A method in a plain loop: which of its attributes can be set, and what one is told who takes it for an optimizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import Net, accumulate, classification, steps_of

from hf_sharpness import SAM, WSAM, SharpnessAware, methods


def test_a_number_of_the_methods_can_be_set() -> None:
    """A schedule of rho's own: it holds from the next step on."""
    model = Net().double()
    method = WSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), mode="coupled", rho=0.05, gamma=0.6)
    batch = steps_of(classification(8), 8)[0][0]
    lengths = []
    for rho in (0.05, 0.2, 0.1):
        method.rho = rho
        assert method.rho == method.method.rho == rho
        method.backward(lambda: accumulate(model, batch, 1), measure=True)
        lengths.append(float(method.metrics["perturbation_norm"]))
        model.zero_grad()
    assert lengths == pytest.approx([0.05, 0.2, 0.1])
    method.gamma = 0.0
    method.backward(lambda: accumulate(model, batch, 1))
    ours = flat_gradient(model)
    model.zero_grad()
    accumulate(model, batch, 1)
    torch.testing.assert_close(ours, flat_gradient(model), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"rho=-1\.0 is not valid"):
        method.rho = -1.0
    method.label = "mine"
    assert method.label == "mine"


def flat_gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (lambda m: m.parameters(), lambda m: torch.optim.SGD(m.parameters()), "model=a generator is not valid"),
        (lambda m: m, lambda m: torch.optim.SGD, "optimizer=SGD is not valid: give the base optimizer"),
        (lambda m: m, lambda m: m, "optimizer=a Net is not valid"),
        (lambda m: m, lambda m: SimpleNamespace(param_groups=[]), "a torch.optim.Optimizer of the model's parameters"),
    ],
)
def test_what_other_packages_take_is_told_apart(model: Any, optimizer: Any, message: str) -> None:
    net = Net()
    for method in (SAM, lambda *given: SharpnessAware(methods.SAM(rho=0.1), *given)):
        with pytest.raises(TypeError, match=message):
            method(model(net), optimizer(net))


@pytest.mark.parametrize("name", ["step", "zero_grad", "param_groups", "first_step"])
def test_a_method_is_no_optimizer(name: str) -> None:
    model = Net()
    with pytest.raises(AttributeError, match=f"SAM is no optimizer and has no {name}: call method.backward"):
        getattr(SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)), name)
    with pytest.raises(AttributeError, match=r"no attribute .*_nothing"):
        getattr(SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)), name + "_nothing")
    with pytest.raises(TypeError, match=r"SAM.__init__\(\) missing 1 required positional argument: 'optimizer'"):
        SAM(model)


def test_a_subclass_may_have_set_it_before() -> None:
    class Own(SAM):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, rho: float = 0.05) -> None:
            self.rho = rho
            super().__init__(*args, rho=rho)

    model = Net()
    method = Own(model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.rho *= 2
    assert method.rho == method.method.rho == 0.1
    method.rho = torch.tensor(0.25)
    assert method.method.rho == 0.25


@pytest.mark.parametrize(("attribute", "value"), [("steps", 3), ("adaptive", True)])
def test_what_the_passes_are_planned_with_cannot_be_set(attribute: str, value: Any) -> None:
    model = Net()
    method = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert getattr(method, attribute) == getattr(methods.SAM(), attribute)
    with pytest.raises(AttributeError, match=rf"{attribute}={value} cannot be set once a SAM is made.* make a new one"):
        setattr(method, attribute, value)
    general = SharpnessAware(methods.SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(AttributeError, match=rf"{attribute}={value} cannot be set once a SharpnessAware is made"):
        setattr(general, attribute, value)


def test_a_subclass_may_count_under_the_name_of_a_hyper_parameter() -> None:
    class Counting(SAM):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.steps = 0
            super().__init__(*args, **kwargs)

        def backward(self, *args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            return super().backward(*args, **kwargs)

    model = Net()
    method = Counting(model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.backward(lambda: (loss := model(torch.ones(1, 6))["logits"].sum()).backward() or loss)
    assert (method.steps, method.method.steps) == (1, 1)
