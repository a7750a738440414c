"""Whether a model fits this machine, found out without making it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from .errors import RecipeError

MOST_MODULES = 10_000
_BYTES_A_PARAMETER = 16
"""float32 weights, gradients and two moments of AdamW."""


def check_size(auto_class: Any, config: Any) -> None:
    """Build a model without memory for its weights, and stop as soon as it is clear that it does not fit.

    Args:
        auto_class: transformers' class that makes it.
        config: the model's configuration.

    Raises:
        RecipeError: training it would take more than the memory of this machine, or it has too many modules.
    """
    most, memory = _most_parameters()
    parameters = modules = 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > most:
            raise RecipeError(
                f"model.config: a model of more than {most:,} parameters: training it takes about "
                f"{_BYTES_A_PARAMETER} bytes for each, and this machine has {memory / 2**30:.0f} GiB: choose a smaller "
                "one, or train a copy of the recipe that is your own"
            )

    def count_module(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise RecipeError(
                f"model.config: a model of more than {MOST_MODULES:,} modules: choose fewer layers, or train a copy of "
                "the recipe that is your own"
            )

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(count_parameter),
        nn.modules.module.register_module_module_registration_hook(count_module),
    ]
    try:
        with torch.device("meta"):
            auto_class.from_config(config)
    finally:
        for hook in hooks:
            hook.remove()


def _most_parameters() -> tuple[int, int]:
    """How many parameters can be trained in the memory of this machine, and that memory in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // _BYTES_A_PARAMETER, memory
