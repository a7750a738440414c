"""From one image to the tensor a vision model takes, without torchvision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Pixels:
    """Resize to `size` x `size`, make `channels` channels, and map 0..255 to -1..1 (ViT's own normalisation).

    Args:
        size: Height and width of the result.
        channels: 1 (grey) or 3 (RGB).
    """

    size: int
    channels: int

    def __call__(self, image: Any) -> torch.Tensor:
        """Return float32 [channels, size, size] for a PIL image or a uint8 array [H, W] or [H, W, 1 or 3]."""
        if hasattr(image, "convert"):
            image = image.convert("L" if self.channels == 1 else "RGB")
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        if pixels.shape[0] != self.channels:  # grey arrays for an RGB model, or the other way round
            pixels = pixels.mean(0, keepdim=True).expand(self.channels, -1, -1)
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = torch.nn.functional.interpolate(
                pixels[None],
                size=(self.size, self.size),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )[0]
        return (pixels / 127.5 - 1).contiguous()

    def preprocessor_config(self) -> str:
        """Return the preprocessor_config.json with which `AutoImageProcessor` does the same."""
        half = (0.5,) * self.channels
        return vit_preprocessor_config(self.size, half, half)


def vit_preprocessor_config(size: int, mean: Sequence[float], std: Sequence[float]) -> str:
    """Return a preprocessor_config.json for square images, normalised by a mean and a deviation of each channel.

    Args:
        size: Height and width.
        mean: Of the channels, 1 or 3, for values in 0..1.
        std: The same.
    """
    return json.dumps(
        {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": len(mean) == 3,
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
        },
        indent=2,
    )
