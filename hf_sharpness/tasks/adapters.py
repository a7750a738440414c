"""LoRA adapters around a recipe's model (the `peft` section), by the peft library."""

from __future__ import annotations

from typing import Any

from .errors import RecipeError
from .recipe import Recipe

INSTALL = "pip install 'hf_sharpness[recipes,peft]'"
_TASK_TYPES = {"sequence-classification": "SEQ_CLS", "instruction-tuning": "CAUSAL_LM"}
"""By which peft trains a new head too; that of an image model is named."""
_HEAD = "classifier"
ALL_LINEAR = "all-linear"


def with_adapters(recipe: Recipe, model: Any) -> Any:
    """The model with LoRA adapters (arXiv 2106.09685) as the section `peft` says; without one the model itself.

    The classification head, which is new, is trained whole and saved with the adapters.

    Raises:
        RecipeError: peft is not installed, or the model has none of the modules.
    """
    section = recipe.peft
    if section is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecipeError(f"{recipe.origin}: peft: the package peft is not installed: `{INSTALL}`") from None
    alpha: Any = section.r if section.alpha is None else section.alpha  # peft takes any number
    modules: Any = section.target_modules
    if modules == [ALL_LINEAR]:
        modules = ALL_LINEAR  # to peft, a word of its own; in a list it would be a name
    task_type = _TASK_TYPES.get(recipe.task)
    has_head = task_type is None and any(name == _HEAD for name, _ in model.named_children())
    config = LoraConfig(
        task_type=task_type,
        r=section.r,
        lora_alpha=alpha,
        lora_dropout=section.dropout,
        target_modules=modules,
        modules_to_save=[_HEAD] if has_head else None,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        named = "none is known for the model's architecture"
        if section.target_modules is not None:
            named = f"{', '.join(section.target_modules)}: the model has no such modules"
        raise RecipeError(
            f"{recipe.origin}: peft.target_modules: {named}: name linear layers of it, such as "
            f"{_some_linear_layers(model)}, or [{ALL_LINEAR}]"
        ) from error
    # Not where a built-in model lies on this machine: what is saved is shared.
    adapted.peft_config["default"].base_model_name_or_path = recipe.model.name_or_path
    return adapted


def _some_linear_layers(model: Any) -> str:
    from torch import nn

    found = [name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ", ".join(list(dict.fromkeys(found))[:4]) or "(it has none)"
