"""Closures that step an optimizer of their own: a critic's, a copy's of adversarial training, loss weights'."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Net, classification, steps_of
from reference import Spec, flat
from torch import Tensor

METHODS = [
    Spec("sam", "sam", {"rho": 0.2}),
    Spec("wsam-coupled", "wsam", {"rho": 0.2, "mode": "coupled"}),
    Spec("wsam-decoupled", "wsam", {"rho": 0.2, "mode": "decoupled"}),
    Spec("xsam", "xsam", {"rho": 0.2, "alpha_points": 3, "refresh": 1}),
]
STEPS = [step[0] for step in steps_of(classification(32), 8)]
Make = Callable[[Any], torch.optim.Optimizer]


class Counting(torch.optim.SGD):
    """Keeps a number for all its parameters among their states."""

    def step(self, closure: Any = None) -> Any:
        self.state["steps"] = self.state.get("steps", 0) + 1
        return super().step(closure)


OPTIMIZERS: dict[str, Make] = {
    "counting": lambda params: Counting(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "sgd-momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}


class Critic:
    """Trained in every pass, and in the loss: the state of its optimizer is as much a state as its weights."""

    def __init__(self, make: Make) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = torch.nn.Linear(3, 1).double()
        self.optimizer = make(self.net.parameters())

    def __call__(self, logits: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        (self.net(logits.detach()) - 1).pow(2).mean().backward()
        self.optimizer.step()
        self.optimizer.param_groups[0]["lr"] *= 0.9
        return self.net(logits).mean()


def closure_of(model: Any, critic: Critic, batch: Any) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        output = model(**batch)
        loss = output["loss"] + critic(output["logits"])
        loss.backward()
        return loss

    return closure


def gradients(model: Any) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_the_gradient_at_moved_weights(make: Make) -> None:
    """That of copies from before the step, the optimizer among them; afterwards one pass has trained the critic."""
    descend_beside(Critic(make))


def descend_beside(critic: Critic) -> None:
    """Steps of SAM, each beside copies from before it."""
    model = Net().double()
    method = Spec("sam", "sam", {"rho": 0.3}).ours(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for batch in STEPS:
        clean, its_critic = copy.deepcopy((model, critic))
        moved, their_critic = copy.deepcopy((model, critic))
        closure_of(clean, its_critic, batch)()
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(clean)]))
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients(clean), strict=True):
                parameter += 0.3 * gradient / norm
        closure_of(moved, their_critic, batch)()
        method.backward(closure_of(model, critic, batch))
        for ours, expected in zip(gradients(model), gradients(moved), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(flat(critic.net), flat(its_critic.net))
        states = [list(c.optimizer.state_dict()["state"].values()) for c in (critic, its_critic)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
        assert critic.optimizer.param_groups[0]["lr"] == its_critic.optimizer.param_groups[0]["lr"]
        method.engine.optimizer.step()
        method.engine.optimizer.zero_grad()


class LargeCritic(Critic):
    """Beyond the 64 KiB up to which a tensor is copied in any case; it may begin to train after some steps.

    Args:
        make: its optimizer.
        begins: the pass in which it is trained for the first time, from 0 on.
    """

    def __init__(self, make: Make, begins: int) -> None:
        super().__init__(make)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = torch.nn.Sequential(torch.nn.Linear(3, 4_000), torch.nn.Linear(4_000, 1)).double()
        self.optimizer = make(self.net.parameters())
        self.passes, self.begins = 0, begins

    def __call__(self, logits: Tensor) -> Tensor:
        self.passes += 1
        return super().__call__(logits) if self.passes > self.begins else self.net(logits).mean()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("begins", [0, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_a_large_one(make: Make, begins: int) -> None:
    descend_beside(LargeCritic(make, begins))


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_the_base_optimizer_may_not_step(spec: Spec) -> None:
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method, before = spec.ours(model, optimizer), flat(model)

    def closure() -> Tensor:
        loss = model(**STEPS[0])["loss"]
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(RuntimeError, match=r"calls optimizer.step\(\).*after method.backward"):
        method.backward(closure)
    assert torch.equal(flat(model), before)
    method.backward(lambda: (loss := model(**STEPS[0])["loss"]).backward() or loss)
    optimizer.step()


def test_a_step_that_fails_leaves_no_watch_behind() -> None:
    """The first one is looked at for whether it reads p.grad."""
    model = Net().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Spec("sam", "sam", {"rho": 0.1}).ours(model, optimizer)
    modes = torch._C._len_torch_function_stack()
    closure = lambda: (loss := model(**STEPS[0])["loss"]).backward() or loss  # noqa: E731
    method.backward(closure)

    def fail(*_: Any) -> None:
        raise OSError("no")

    hook = optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match="no"):
        optimizer.step()
    hook.remove()
    method.backward(closure)
    assert torch._C._len_torch_function_stack() == modes
    optimizer.step()


class Late:
    """Makes a teacher in its second pass, and moves it in every later one."""

    def __init__(self) -> None:
        self.teacher: Any = None
        self.passes = 0

    def __call__(self, model: Any, batch: Any) -> Tensor:
        self.passes += 1
        if self.passes == 2:
            self.teacher = copy.deepcopy(model).requires_grad_(False)
        if self.passes < 2:
            return torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), model.parameters(), strict=True):
                mine.data.mul_(0.5).add_(theirs, alpha=0.7)
        return (model(**batch)["logits"] - self.teacher(**batch)["logits"]).pow(2).mean()


@pytest.mark.filterwarnings("error")
def test_a_teacher_that_is_made_on_the_way() -> None:
    """A step of rho 0 is the stock one, the third one too, which nobody would have looked at."""
    weights = []
    for spec in (None, Spec("sam", "sam", {"rho": 0.0})):
        model, late = Net().double(), Late()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method: Any = None if spec is None else spec.ours(model, optimizer)
        for batch in STEPS:

            def closure(batch: Any = batch, model: Any = model, late: Any = late) -> Tensor:
                loss = model(**batch)["loss"] + late(model, batch)
                loss.backward()
                return loss

            closure() if method is None else method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
        teacher = torch.cat([p.flatten() for p in late.teacher.parameters()])
        weights.append((flat(model), teacher, late.passes))
    assert torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][1], weights[1][1])
    assert weights[0][2] == weights[1][2] == len(STEPS)


def plain_closure(model: Any, batch: Any) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    return closure


class Factored(torch.optim.SGD):
    """As K-FAC: hooks gather running averages of what linear layers get, and steps divide by them."""

    def __init__(self, model: Any, lr: float) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.factors: dict[Any, Tensor] = {}
        self.passes = 0
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(self.gather)

    def gather(self, layer: Any, inputs: Any) -> None:
        x = inputs[0].detach()
        self.passes += 1
        self.factors[layer] = x.T @ x / len(x) + 0.9 * self.factors.get(layer, torch.zeros((), dtype=x.dtype))

    def step(self, closure: Any = None) -> Any:
        for layer, factor in self.factors.items():
            layer.weight.grad = torch.linalg.solve(
                factor + torch.eye(len(factor), dtype=factor.dtype), layer.weight.grad, left=False
            )
        return super().step(closure)


@pytest.mark.parametrize("spec", METHODS, ids=str)
def test_what_the_base_optimizers_hooks_gather(spec: Spec) -> None:
    """At rho 0 training is stock's: the averages are of one pass a step."""
    runs = []
    for is_stock in (True, False):
        model = Net().double()
        optimizer = Factored(model, 0.1)
        at_0 = Spec(spec.name, spec.method, {**spec.settings, "rho": 0.0})
        backward = (lambda closure: closure()) if is_stock else at_0.ours(model, optimizer).backward
        for batch in STEPS[:4]:
            backward(plain_closure(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        runs.append((flat(model), optimizer.passes))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-12, atol=1e-14)
    assert runs[0][1] == runs[1][1]
