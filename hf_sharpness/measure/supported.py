"""Whether the loss around a model's weights can be measured exactly."""

from __future__ import annotations

import torch
from torch import nn

from ..engine.parallel import is_tensor_parallel, uses_fsdp1
from .errors import MeasureError


def check_measurable(wrapper: nn.Module, model: nn.Module, params: list[nn.Parameter]) -> None:
    """Refuse it otherwise.

    Args:
        wrapper: the model as it is spread over ranks.
        model: the model.
        params: what is trainable in it.

    Raises:
        MeasureError: nothing is, or a perturbation of the weights would be lost or not exact.
    """
    if not params:
        raise MeasureError(f"{type(model).__name__} has no trainable parameter to perturb: set requires_grad")
    if uses_fsdp1(wrapper):
        raise MeasureError("FSDP1 hides the weights from a measurement: use FSDP2 (fsdp_version: 2)")
    if hasattr(wrapper, "zero_optimization_stage"):
        raise MeasureError("DeepSpeed hides the weights from a measurement: measure the saved model instead")
    if is_tensor_parallel(wrapper, params):
        raise MeasureError("weights shared out by tensor parallelism are not measured: use data parallelism or FSDP2")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise MeasureError(
                f"the trainable parameter {name} is stored in {parameter.dtype}, where a small perturbation is lost "
                "in rounding: load the model with dtype=torch.float32 (bf16=True in the training arguments keeps its "
                "speed)"
            )
