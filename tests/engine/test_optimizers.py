"""Base optimizers that climb, that have no learning rate, that take their gradient elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import Net, accumulate, classification, steps_of
from reference import SPECS, Spec, by_name, flat
from torch import Tensor, nn

from hf_sharpness import SAM, WSAM
from hf_sharpness.engine.optimizers import kind_named, kind_of

DATA = steps_of(classification(32), 8)
EXACT = {"rtol": 1e-12, "atol": 1e-13}
four_methods = pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW], ids=lambda c: c.__name__)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_to_maximise_an_objective_is_to_minimise_minus_it(spec: Spec, base: Any) -> None:
    runs = []
    for sign in (1, -1):
        model = Net().double()
        optimizer = base(model.parameters(), lr=0.05, maximize=sign < 0, weight_decay=0.01)
        method = spec.ours(model, optimizer)
        for (batch,) in DATA:

            def closure(model: Net = model, batch: Any = batch, sign: int = sign) -> Tensor:
                loss = sign * model(**batch)["loss"]
                loss.backward()
                return loss

            method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(flat(model))
    torch.testing.assert_close(*runs, **EXACT)


def test_to_climb_with_some_weights_only_is_refused() -> None:
    model = Net()
    groups = [{"params": model.first.parameters(), "maximize": True}, {"params": model.last.parameters()}]
    with pytest.raises(ValueError, match="maximize=True in some"):
        SAM(model, torch.optim.SGD(groups, lr=0.1))


class NoRate(torch.optim.SGD):
    """As Adafactor with a relative step: the learning rate in its groups is None."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group["lr"] = None


def test_a_learning_rate_of_none_is_refused_for_decoupled_wsam() -> None:
    model = Net()
    with pytest.raises(ValueError, match="NoRate has no learning rate"):
        WSAM(model, NoRate(model.parameters()), mode="decoupled")
    WSAM(model, NoRate(model.parameters()), mode="coupled")


class PerExample(nn.Module):
    """Leaves every example's gradient in the weight's `grad_sample`, as libraries for differential privacy do."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.attribute = attribute
        self.linear.register_full_backward_hook(self.keep)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.x, x = x, x.detach().requires_grad_()  # a hook on the module needs a gradient to pass on
        return {"loss": nn.functional.cross_entropy(self.linear(x), labels)}

    def keep(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        samples = torch.einsum("bo,bi->boi", outputs[0], self.x)
        setattr(module.weight, self.attribute, samples if self.attribute == "grad_sample" else samples.sum(0))


@pytest.mark.parametrize("attribute", ["grad_sample", "summed_grad", "main_grad"])
@four_methods
def test_gradients_elsewhere_than_in_grad_are_refused_before_the_first_step(spec: Spec, attribute: str) -> None:
    torch.manual_seed(0)
    model = PerExample(attribute)
    before = flat(model)
    method = spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = steps_of(classification(8, torch.float32), 8)[0][0]
    with pytest.raises(ValueError, match=rf"p\.{attribute}"):
        method.backward(lambda: accumulate(model, batch, 1))
    assert torch.equal(flat(model), before)


def test_an_attribute_that_is_no_gradient_is_none_of_our_business() -> None:
    """A number or a name noted on a parameter, and what was there before the pass."""
    model = Net().double()
    model.first.weight.grad_history = torch.zeros_like(model.first.weight)

    def closure() -> Tensor:
        loss = accumulate(model, DATA[0][0], 1)
        model.first.weight.grad_norm = model.first.weight.grad.norm()
        model.first.weight.grad_name = "first"
        return loss

    SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)).backward(closure)


def test_an_optimizer_known_for_it_is_refused_at_once() -> None:
    class Private(torch.optim.SGD):
        @property
        def grad_samples(self) -> list[Tensor]:
            return []

    model = Net()
    with pytest.raises(ValueError, match="grad_sample"):
        SAM(model, Private(model.parameters(), lr=0.1))


def taken_away(parameter: Tensor) -> None:
    parameter.grad = None


@four_methods
def test_gradients_that_hooks_take_away_are_refused_in_the_first_step(spec: Spec) -> None:
    """As of optimizers that step in the backward pass."""
    model = Net().double()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(taken_away)
    method = spec.ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"a hook takes the gradients out of p\.grad"):
        method.backward(lambda: accumulate(model, DATA[0][0], 1))


class ByHooks(torch.optim.SGD):
    """Steps with the gradients that hooks have added up beside p.grad."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.found: dict[Any, Tensor] = {}
        for parameter in self.param_groups[0]["params"]:
            parameter.register_hook(lambda g, p=parameter: self.found.update({p: g + self.found.get(p, 0)}))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter, gradient in self.found.items():
            parameter.sub_(gradient, alpha=0.1)
        self.found.clear()


@four_methods
def test_an_optimizer_that_does_not_read_the_gradient_is_refused_in_its_first_step(spec: Spec) -> None:
    model = Net().double()
    optimizer = ByHooks(model.parameters(), lr=0.1)
    spec.ours(model, optimizer).backward(lambda: accumulate(model, DATA[0][0], 1))
    with pytest.raises(ValueError, match="ByHooks steps without a look"):
        optimizer.step()


def test_an_optimizer_may_leave_out_its_first_steps() -> None:
    """Then a later one is looked at; what has read p.grad once is asked no more."""

    class Late(ByHooks):
        steps = 0

        def step(self, closure: Any = None) -> None:
            self.steps += 1
            if self.steps == 3:
                torch.optim.SGD.step(self)
            elif self.steps > 3:
                super().step()

    model = Net().double()
    optimizer = Late(model.parameters(), lr=0.1)
    method = SAM(model, optimizer)
    for _ in range(4):
        method.backward(lambda: accumulate(model, DATA[0][0], 1))
        optimizer.step()
        optimizer.zero_grad()


@four_methods
def test_a_closure_of_the_optimizers_step(spec: Spec) -> None:
    """It would run anew in the place of what ``method.backward`` left; within it ``method.backward`` may be called."""
    model, twin = Net().double(), Net().double()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    method = spec.ours(model, optimizer)

    def closure(model: nn.Module = model) -> Tensor:
        return accumulate(model, DATA[0][0], 1)

    method.backward(closure)
    with pytest.raises(RuntimeError, match="runs its closure itself"):
        optimizer.step(closure)
    optimizer.zero_grad()
    fresh = spec.ours(model, optimizer)
    if spec.name == "wsam-decoupled":
        with pytest.raises(RuntimeError, match="too late for what mode='decoupled' adds"):
            optimizer.step(lambda: fresh.backward(closure))
        return
    optimizer.step(lambda: fresh.backward(closure))
    spec.ours(twin, other).backward(lambda: closure(twin))
    other.step()
    torch.testing.assert_close(flat(model), flat(twin), **EXACT)


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("sgd", None, "plain"),
        ("sgd", "", "plain"),
        ("sgd", "nesterov=false, momentum=0.0", "plain"),
        ("sgd", "weight_decay=.1, momentum = .9", "momentum"),
        ("adamw_torch", "momentum=0", "adaptive"),
        ("rmsprop", None, "adaptive"),
    ],
)
def test_the_kind_of_a_base_optimizer_by_its_name(name: str, settings: str | None, kind: str) -> None:
    assert kind_named(name, settings) == kind


def test_the_kind_of_a_base_optimizer() -> None:
    """Momentum in one of several groups is momentum."""
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "momentum": 0.5}]
    assert kind_of(torch.optim.SGD(weights, lr=0.1)) == "plain"
    assert kind_of(torch.optim.SGD(weights, lr=0.1, momentum=0.9)) == "momentum"
    assert kind_of(torch.optim.SGD(groups, lr=0.1)) == "momentum"
    assert kind_of(torch.optim.AdamW(weights)) == "adaptive"


class Several(torch.optim.Optimizer):
    """Made of others, as Muon for matrices and AdamW for the rest; leaves out ``super().__init__()``, as many do."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    param_groups = property(lambda self: [group for o in self.optimizers for group in o.param_groups])  # type: ignore[assignment]
    state = property(lambda self: {key: value for o in self.optimizers for key, value in o.state.items()})  # type: ignore[assignment]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)


@four_methods
def test_an_optimizer_that_is_made_of_several(spec: Spec) -> None:
    """Trains as its parts' one optimizer would."""
    models = [Net().double() for _ in range(2)]
    first, second = ([p for i, p in enumerate(models[0].parameters()) if i % 2 == k] for k in (0, 1))
    optimizers = [
        Several(torch.optim.Adam(first, lr=0.01), torch.optim.Adam(second, lr=0.01)),
        torch.optim.Adam(models[1].parameters(), lr=0.01),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        method = spec.ours(model, optimizer)
        for step in DATA:
            method.backward(lambda model=model, step=step: accumulate(model, step[0], 1))
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(flat(models[0]), flat(models[1]), **EXACT)
