"""`hf-sharpness run`: scripts and tools written for transformers' Trainer, as they are, with sharpness-aware steps."""

from .command import main as main
