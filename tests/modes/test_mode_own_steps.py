"""A training_step of the user's own on two ranks: every rank takes the same steps, and they are the method's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launch import Ranks
from models import classification, steps_of
from specs_of_modes import named

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import own_steps
from own_steps_by_hand import CASES, by_hand

Launcher = Callable[[str], Ranks]
MODULE = "cases_own_steps"
TURNS = [(2, "sam"), (2, "wsam-coupled"), (2, "wsam-decoupled"), (1, "sam")]


@pytest.mark.parametrize(("accumulation", "name"), TURNS)
@pytest.mark.parametrize("form", ["Before", "Twice", "Own", "Masked", "Extra"])
def test_ddp(form: str, accumulation: int, name: str, ranks: Launcher) -> None:
    first, second = ranks(MODULE)[f"ddp_whole-{form}:{accumulation}:{name}"]
    steps = (steps_of(classification(96), 8, accumulation) * 3)[:3]
    expected = by_hand(CASES[getattr(own_steps, form)], named(name).reference(), steps, lr=0.1)
    torch.testing.assert_close(torch.stack(first), torch.stack(second), rtol=0, atol=0)
    torch.testing.assert_close(torch.stack(first), torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.usually("ddp-edited-wsam-coupled|fsdp2-own-wsam-decoupled")
@pytest.mark.parametrize("name", ["wsam-coupled", "wsam-decoupled"])
@pytest.mark.parametrize("form", ["once", "own", "twice", "edited"])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_llama(wrapper: str, form: str, name: str, ranks: Launcher) -> None:
    """The same as an ordinary step on so many times the loss, sharded or not."""
    first, second = ranks(MODULE)[f"llama_whole-{wrapper}:{form}:{name}"]
    torch.testing.assert_close(torch.stack(first["whole"]), torch.stack(first["scaled"]), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.stack(first["whole"]), torch.stack(second["whole"]), rtol=0, atol=0)
