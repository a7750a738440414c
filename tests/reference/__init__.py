"""Independent float64 references: each file reads like the paper and imports nothing from hf_sharpness."""

from .bases import SGD, AdamW, clip_coefficient
from .methods import Plain, Sam, Wsam, Xsam
from .phases import InSteps, linear_ramp, sharp_steps
from .run import Problem, Record, flat, linear_schedule, mean_losses, reference_run, token_losses
from .specs import BASES, SPECS, Base, Spec, by_name

__all__ = [
    "BASES",
    "SGD",
    "SPECS",
    "AdamW",
    "Base",
    "InSteps",
    "Plain",
    "Problem",
    "Record",
    "Sam",
    "Spec",
    "Wsam",
    "Xsam",
    "by_name",
    "clip_coefficient",
    "flat",
    "linear_ramp",
    "linear_schedule",
    "mean_losses",
    "reference_run",
    "sharp_steps",
    "token_losses",
]
