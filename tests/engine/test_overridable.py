"""torch.autograd.backward under a mode, in versions of torch that tell it and in those that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hf_sharpness.engine.overridable import make_backward_overridable


class Skip(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is torch.autograd.backward else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("several", [False, True])
def test_a_mode_sees_backward_where_torch_does_not_tell_it(monkeypatch: Any, several: bool) -> None:
    original = torch.autograd.backward

    def untold(*args: Any, **kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", untold)
    make_backward_overridable()
    assert torch.autograd.backward is not untold
    x = torch.ones((), requires_grad=True)
    loss = [x * 2, x * 3] if several else x * 2
    with Skip():
        torch.autograd.backward(loss)
    assert x.grad is None
    torch.autograd.backward(loss)
    assert float(x.grad) == (5.0 if several else 2.0)


def test_it_is_left_alone_where_torch_tells_it() -> None:
    make_backward_overridable()
    before = torch.autograd.backward
    make_backward_overridable()
    assert torch.autograd.backward is before
