"""What a pass keeps on weights, in the base optimizer's settings and in the weights themselves counts once a step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Net
from passes_of_state import ITEMS, every_method
from reference import Spec, by_name, flat
from torch import Tensor, nn

from hf_sharpness import SAM

STEPS = 4
Look = Callable[[Any], Any]


def batch(step: int) -> dict[str, Tensor]:
    items = ITEMS[8 * step : 8 * step + 8]
    return {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}


def run(make: Callable[[nn.Module], tuple[Any, Callable[[], None]]], spec: Spec | None, look: Look) -> list[Any]:
    """What ``look`` sees after each step, and the weights.

    ``make`` gives the base optimizer, and what a pass does at its end.
    """
    torch.manual_seed(0)
    model = Net().double()
    optimizer, at_the_end = make(model)
    method = spec.ours(model, optimizer) if spec else None
    seen: list[Any] = []
    for step in range(STEPS):
        inputs = batch(step)

        def closure(inputs: Any = inputs) -> Tensor:
            loss = model(**inputs)["loss"]
            loss.backward()
            at_the_end()
            return loss

        method.backward(closure) if method else closure()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(copy.deepcopy(look(model if look is not settings else optimizer)))
    return [*seen, flat(model)]


def settings(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def attributes(model: nn.Module) -> list[Any]:
    return [{k: v for k, v in vars(p).items() if not k.startswith("_")} for p in model.parameters()]


def assert_the_same(mine: list[Any], stock: list[Any]) -> None:
    for ours, theirs in zip(mine, stock, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def important(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    """Importance for pruning, summed by hooks; a count; and what the first pass alone makes."""
    for p in model.parameters():
        p.importance = torch.zeros_like(p)  # type: ignore[attr-defined]
        p.count = 0  # type: ignore[attr-defined]

        def hook(p: Any) -> None:
            p.importance.add_((p.detach() * p.grad) ** 2)
            p.count += 1

        p.register_post_accumulate_grad_hook(hook)

    def at_the_end() -> None:
        for p in model.parameters():
            p.total = getattr(p, "total", 0.0) + float(p.detach().sum())

    return torch.optim.SGD(model.parameters(), lr=0.1), at_the_end


@every_method
def test_attributes_of_weights(spec: Spec) -> None:
    assert_the_same(run(important, spec, attributes), run(important, None, attributes))


def test_what_a_library_marks_weights_with_is_left_alone() -> None:
    def marked(model: nn.Module) -> tuple[Any, Callable[[], None]]:
        def at_the_end() -> None:
            for p in model.parameters():
                p._calls = getattr(p, "_calls", 0) + 1  # type: ignore[attr-defined]

        return torch.optim.SGD(model.parameters(), lr=0.1), at_the_end

    model_calls = run(marked, Spec("sam", "sam", {"rho": 0.0}), lambda model: [p._calls for p in model.parameters()])
    assert [calls[0] for calls in model_calls[:-1]] == [2, 4, 6, 8]


def scaled(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def at_the_end() -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.9

    return optimizer, at_the_end


def filled(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    return optimizer, lambda: optimizer.param_groups[0]["lr"].mul_(0.9)


def scheduled(model: nn.Module) -> tuple[Any, Callable[[], None]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def at_the_end() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # before optimizer.step()
            scheduler.step()

    return optimizer, at_the_end


@pytest.mark.parametrize("make", [scaled, filled, scheduled], ids=lambda f: f.__name__)
@every_method
def test_the_learning_rate(spec: Spec, make: Any) -> None:
    assert_the_same(run(make, spec, settings), run(make, None, settings))


@every_method
def test_a_pass_that_ends_in_evaluation_mode(spec: Spec) -> None:
    """Further passes begin in the mode of the first one; the step leaves the mode that it left."""
    runs = []
    for method in (spec, None):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ours = method.ours(model, optimizer) if method else None
        for _ in range(STEPS):
            model.train()
            x = torch.randn(8, 4, dtype=torch.float64)

            def closure(model: nn.Module = model, x: Tensor = x) -> Tensor:
                loss = model(x).square().mean()
                loss.backward()
                model.eval()
                return loss

            ours.backward(closure) if ours else closure()
            assert not any(module.training for module in model.modules())
            optimizer.step()
            optimizer.zero_grad()
        runs.append(flat(model))
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-12)


@pytest.mark.checked
@pytest.mark.parametrize("rebinds", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_the_check_leaves_no_weights_of_its_own(early: bool, rebinds: bool) -> None:
    """A closure that decays weights itself does so once, whether the step is checked or not."""
    runs = []
    for check in ("off", "warn"):
        torch.manual_seed(0)
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = SAM(model, optimizer, rho=0.05, check=check)
        for step in range(STEPS):

            def closure(step: int = step, model: Any = model) -> Tensor:
                def decay() -> None:
                    with torch.no_grad():
                        for p in model.parameters():
                            if rebinds:
                                p.data = p.data * 0.99
                            else:
                                p.mul_(0.99)

                if early:
                    decay()
                loss = model(**batch(step))["loss"]
                loss.backward()
                if not early:
                    decay()
                return loss

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                method.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(flat(model))
    assert torch.equal(*runs)


@pytest.mark.parametrize("spec", by_name("sam", "wsam-coupled", "wsam-decoupled", "xsam"), ids=str)
def test_gradients_with_a_graph(spec: Spec) -> None:
    """``backward(create_graph=True)`` makes a new sum instead of adding in place."""
    runs = []
    for create_graph in (True, False):
        torch.manual_seed(0)
        model = Net().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method = spec.ours(model, optimizer)
        for step in range(STEPS):

            def closure(step: int = step, model: Any = model, create_graph: bool = create_graph) -> Tensor:
                loss = model(**batch(step))["loss"]
                loss.backward(create_graph=create_graph)
                return loss

            method.backward(closure)
            with torch.no_grad():
                optimizer.step()
            for p in model.parameters():
                p.grad = None
        runs.append(flat(model).detach())
    torch.testing.assert_close(*runs, rtol=1e-10, atol=1e-12)


@every_method
def test_a_critic_that_is_trained_for_a_moment(spec: Spec) -> None:
    """As a GAN has it: its gradient is that of the first pass, though it needs none any more when that ends."""

    def with_critic(model: nn.Module) -> tuple[Any, Callable[[], None]]:
        critic = model.critic = nn.Linear(3, 1).double()  # type: ignore[assignment]
        critic.requires_grad_(False)
        outside = [nn.Linear(3, 1).double().requires_grad_(False)]
        vars(model)["outside"] = outside
        optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if "critic" not in name], lr=0.1)

        def at_the_end() -> None:
            outside[0].requires_grad_(True)
            outside[0](torch.ones(2, 3, dtype=torch.float64)).square().mean().backward()
            outside[0].requires_grad_(False)

        return optimizer, at_the_end

    def gradient(model: Any) -> Any:
        found = model.outside[0].weight.grad.clone()
        model.outside[0].weight.grad = model.outside[0].bias.grad = None
        return found

    assert_the_same(run(with_critic, spec, gradient)[:-1], run(with_critic, None, gradient)[:-1])
