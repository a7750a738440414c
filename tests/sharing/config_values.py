"""What the tests of sharpness_config.json share: a value for every argument, and how to write and read them."""

from __future__ import annotations

import json
from typing import Any

from transformers import HfArgumentParser

from hf_sharpness import TrainingArguments
from hf_sharpness.sharpness_arguments.definitions import defaults

OTHER = {
    "optim": "wsam",
    "base_optim": "sgd",
    "sam_rho": 0.3,
    "sam_adaptive": True,
    "sam_steps": 3,
    "sam_scope": "device",
    "sam_check": "error",
    "sam_start": 0.25,
    "sam_stop": 0.75,
    "sam_rho_schedule": "linear",
    "sam_fraction": 1.0,
    "sam_target_modules": "norm, head",
    "wsam_mode": "coupled",
    "wsam_gamma": 0.7,
}
"""A value that is not its default for every argument that concerns WSAM; of several steps there is no fraction."""
OF_ALL = OTHER | {
    "xsam_rho_max": 0.9,
    "xsam_alpha": 0.25,
    "xsam_alpha_max": 1.5,
    "xsam_alpha_points": 5,
    "xsam_search": "grid",
    "xsam_refresh": 7,
}
"""And for those of other methods."""
OPTIONS = [
    "sam_scope",
    "sam_check",
    "sam_start",
    "sam_stop",
    "sam_rho_schedule",
    "sam_fraction",
    "sam_target_modules",
]
DEFAULTS = {name: default for name, default in defaults("wsam").items() if name in OTHER}


def values(arguments: Any) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in OTHER}


def command_line(*line: str, arguments_class: type = TrainingArguments) -> Any:
    parser = HfArgumentParser(arguments_class)
    (arguments,) = parser.parse_args_into_dataclasses(["--output_dir", "out", *line], look_for_args_file=False)
    return arguments


def content(**entries: Any) -> bytes:
    return json.dumps({"format_version": 1} | entries).encode()
