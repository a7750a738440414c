"""A mode or a hook of this package's is off torch when what it was on for is over, wherever an interrupt came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from interrupts import TORCHS, interrupted_everywhere
from torch import nn, overrides
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_sharpness import SAM, XSAM
from hf_sharpness.engine import for_a_while
from hf_sharpness.engine.elsewhere import FirstStep
from hf_sharpness.engine.for_a_while import leave, modes_on
from hf_sharpness.engine.watch import Watch
from hf_sharpness.training.gradient_watch import GradientWatch

WHERE = (for_a_while.__file__, *TORCHS)


def dispatch_modes() -> list[TorchDispatchMode]:
    return _python_dispatch._get_current_dispatch_mode_stack()


def hooks_of_all_modules() -> list[Any]:
    return [*torch_module._global_forward_pre_hooks.values(), *torch_module._global_forward_hooks.values()]


class Sees(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Named:
    def name(self) -> str:
        return "the class's"


def test_an_attribute_is_put_back() -> None:
    """Of the instance's own or of its class, within one another, and where the inside raises."""
    one, other = Named(), Named()
    other.name = lambda: "its own"

    def inside(instance: Named) -> None:
        with for_a_while.has(instance, "name", lambda: "for a while"):
            with for_a_while.has(instance, "name", lambda: "within"):
                assert instance.name() == "within"
            assert instance.name() == "for a while"
            raise KeyboardInterrupt

    for instance, word in ((one, "the class's"), (other, "its own")):
        with pytest.raises(KeyboardInterrupt):
            inside(instance)
        assert instance.name() == word
    assert not vars(one)


KINDS = [(Sees, modes_on, overrides), (Dispatches, dispatch_modes, _python_dispatch)]


@pytest.mark.parametrize(("kind", "on", "torchs"), KINDS, ids=["function", "dispatch"])
def test_a_mode_leaves_from_anywhere(kind: type, on: Callable[[], list], torchs: Any) -> None:
    modes = [kind() for _ in range(3)]
    with modes[0], modes[1]:
        with modes[2]:
            assert on() == modes
            leave(modes[1])
            assert on() == [modes[0], modes[2]]
            leave(modes[1])
            leave(None)
            assert on() == [modes[0], modes[2]]
            leave(modes[0])
            assert on() == [modes[2]]
            torchs._push_mode(modes[0])
            leave(modes[2])
            torchs._push_mode(modes[2])
        torchs._push_mode(modes[1])
    assert not on()


@pytest.fixture
def model() -> nn.Module:
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()  # which imports, the first time
    return model


def test_a_gradient_watch(model: nn.Module) -> None:
    """At every line of its own, and of torch's, between the first noting and the end."""
    watch = GradientWatch(model.parameters())

    def run() -> None:
        watch.note()
        watch.note()
        watch.close()

    for number in interrupted_everywhere(run):
        watch.close()
        assert not modes_on(), number
        assert watch.aliases is None


def test_a_gradient_watch_that_was_interrupted_watches_again(model: nn.Module) -> None:
    watch = GradientWatch(model.parameters())
    for number in interrupted_everywhere(watch.note):
        watch.note()
        assert len(modes_on()) == 1, number
        model.weight.grad.data.mul_(2)  # type: ignore[union-attr]
        assert watch.changed()
    watch.close()
    assert not modes_on()


def test_a_watched_pass(model: nn.Module) -> None:
    """Nobody closes this one."""
    for number in interrupted_everywhere(lambda: Watch(model.parameters()).run(lambda: None)):
        assert not modes_on(), number


def test_the_look_at_the_first_step(model: nn.Module) -> None:
    for number in interrupted_everywhere(lambda: first_step(model).close()):
        assert not modes_on(), number


def first_step(model: nn.Module) -> FirstStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = FirstStep()
    step.follow(optimizer)
    try:
        optimizer.step()
    finally:
        step.close()
    return step


def test_a_failed_first_step_is_looked_at_again(model: nn.Module) -> None:
    """The mode of the failed one neither stays below the next one's nor beyond the end of the training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = FirstStep()
    step.follow(optimizer)
    optimizer.param_groups[0]["lr"] = "none"
    for _ in range(2):
        with pytest.raises((TypeError, RuntimeError)):
            optimizer.step()
        assert len(modes_on()) == 1
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert step.done
    assert not modes_on()


@pytest.mark.filterwarnings("ignore:method.backward was called again")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="sam"),
        pytest.param({"alpha_points": 3, "refresh": 1, "search": "grid"}, id="xsam", marks=pytest.mark.slow),
    ],
)
def test_a_plain_loops_step(options: dict[str, Any]) -> None:
    """Its first, in which every mode and hook is on at some time: what watches writes, gradients, modules, probes.

    Interrupted wherever modes and hooks are handled; elsewhere tests/modes/test_mode_faults_any_line.py does it.
    """
    model = nn.BatchNorm1d(2)
    method = (XSAM if options else SAM)(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)

    def closure() -> torch.Tensor:
        loss = model(torch.ones(2, 2)).sum()
        if loss.requires_grad:
            loss.backward()
        return loss

    for number in interrupted_everywhere(lambda: method.backward([closure]), WHERE):
        assert not modes_on(), number
        assert not dispatch_modes(), number
        assert not hooks_of_all_modules(), number
