"""Axolotl's plugin. In its YAML file, beside the `optimizer` that takes the step:

plugins:
  - hf_sharpness.integrations.axolotl.SharpnessPlugin
sharpness: wsam     # a method, as --optim would name it
sam_rho: 0.05       # and the other sharpness arguments
"""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from axolotl.integrations.base import BasePlugin

from ..arguments import SharpnessArguments as SharpnessArguments
from ..methods import METHODS
from ..sharpness_arguments.definitions import shared_arguments
from ..trainer import SharpnessTrainerMixin

_ARGUMENTS = [name for name in shared_arguments() if name not in ("optim", "base_optim")]

_FIELDS: dict[str, Any] = {
    "sharpness": (Literal[tuple(METHODS)] | None, None),
    **dict.fromkeys(_ARGUMENTS, (bool | int | float | str | None, None)),
}

SharpnessInput = pydantic.create_model("SharpnessInput", **_FIELDS)
"""The keys that the plugin adds to Axolotl's YAML file; their values are checked with the training arguments."""


class SharpnessPlugin(BasePlugin):
    """Sharpness-aware steps in Axolotl's supervised training; without `sharpness` it changes nothing."""

    def get_input_args(self) -> str:
        """Where the keys are defined."""
        return f"{__name__}.SharpnessInput"

    def get_training_args_mixin(self) -> str:
        """Where the fields are defined that Axolotl's training arguments get."""
        return "hf_sharpness.SharpnessArguments"

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """Their values."""
        if not cfg.sharpness:
            return None
        given = {name: cfg[name] for name in _ARGUMENTS if cfg[name] is not None}
        return {"optim": cfg.sharpness, "base_optim": str(cfg.optimizer), **given}

    def get_trainer_cls(self, cfg: Any) -> type | None:
        """Axolotl's trainer with sharpness-aware steps.

        Raises:
            ValueError: the file asks for one of Axolotl's other trainers.
        """
        if not cfg.sharpness:
            return None
        for key in ("rl", "reward_model", "process_reward_model", "trainer_cls"):
            if cfg[key]:
                raise ValueError(f"sharpness: {cfg.sharpness} does not go with {key}: {cfg[key]}: remove one of them")
        from axolotl.core.trainers.base import AxolotlTrainer

        return type("SharpnessAxolotlTrainer", (SharpnessTrainerMixin, AxolotlTrainer), {"__module__": __name__})
