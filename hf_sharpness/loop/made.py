"""The plain-loop class of a method, made of the method's own definition: ``WSAM(model, optimizer, rho=0.05)``."""

from __future__ import annotations

import functools
import inspect
import textwrap
from typing import Any

import torch
from torch import nn

from ..methods import Method, Options, hyperparameters
from ..methods.options import PREFIX
from .given import check_given, refuse_unknown
from .sharpness_aware import HOME, SharpnessAware


@functools.cache
def loop_class(method: type[Method]) -> type[SharpnessAware]:
    """The plain-loop class of a method, which takes model, optimizer, and as keywords the hyper-parameters.

    Args:
        method: the method's class.
    """
    own = hyperparameters(method)
    signature = _signature(method)

    def __init__(self: SharpnessAware, model: nn.Module, optimizer: torch.optim.Optimizer, **given: Any) -> None:
        check_given(method.__name__, model, optimizer)
        refuse_unknown(method.__name__, given, signature.parameters)
        settings = {name: given.pop(name) for name in own if name in given}
        others = {name: value for name, value in method.without_epochs.items() if settings.get(name) is None}
        SharpnessAware.__init__(self, method(**{**settings, **others}), model, optimizer, **given)
        self._without_epochs = set(others)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{method.__name__}.__init__"
    attributes = {name: _shown(source, getattr(method, source).__doc__) for name, source in method.shown.items()}
    namespace = {"__init__": __init__, "__doc__": _documentation(method), "__module__": HOME, **attributes}
    return type(method.__name__, (SharpnessAware,), namespace)


def _signature(method: type[Method]) -> inspect.Signature:
    """self, model, optimizer; hyper-parameters and options; what ``SharpnessAware`` takes besides."""
    common = inspect.signature(SharpnessAware.__init__).parameters.values()
    keyword, hints = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter
    settings = {**hyperparameters(method), **hyperparameters(Options, PREFIX)}
    return inspect.Signature(
        [
            *(p for p in common if p.kind is hints.POSITIONAL_OR_KEYWORD and p.name != "method"),
            *(
                hints(name, keyword, default=None, annotation=h.type | None)
                if name in method.without_epochs
                else hints(name, keyword, default=h.default, annotation=h.type)
                for name, h in settings.items()
            ),
            *(p for p in common if p.kind is keyword),
        ],
        return_annotation=None,
    )


def _documentation(method: type[Method]) -> str:
    common = inspect.getdoc(SharpnessAware) or ""
    arguments = common.partition("Args:\n")[2].partition("\n\n")[0]
    before, rest = arguments[arguments.index("    model:") :].split("    scaler:")
    after, _ = rest.split("    options:")
    settings = {**hyperparameters(method), **hyperparameters(Options, PREFIX)}
    texts = {name: h.help + ("" if h.default is None else f" Default: {h.default}") for name, h in settings.items()}
    for name, value in method.without_epochs.items():
        texts[name] += f" once start_epoch() has been called, {value} before"
    own = "".join(_wrapped(f"{name}: {text.rstrip('.')}.") + "\n" for name, text in texts.items())
    return f"{inspect.getdoc(method)}\n\nArgs:\n{before}{own}    scaler:{after}"


_wrapped = functools.partial(textwrap.fill, width=112, initial_indent="    ", subsequent_indent="        ")


def _shown(source: str, doc: str | None) -> property:
    """A property of a plain-loop class that shows one of its method."""

    def get(self: SharpnessAware) -> Any:
        return getattr(self.method, source)

    return property(get, doc=doc)
