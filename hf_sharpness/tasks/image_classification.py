"""Image classification: a ViT from a configuration, or any pretrained image classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .errors import RecipeError
from .models import Task, build_config, build_model, load_image_processor
from .pixels import Pixels
from .recipe import Recipe
from .sources import Examples, Splits


class ImageDataset(Dataset):
    """Examples as `{"pixel_values": float32 [C, H, W], "labels": int}`, converted when they are asked for."""

    def __init__(self, examples: Examples, to_pixels: Any) -> None:
        self.examples, self.to_pixels = examples, to_pixels

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.examples[index]
        return {"pixel_values": self.to_pixels(image), "labels": label}


def build_image_task(recipe: Recipe, data: Splits) -> Task:
    """Build the model and the data sets of an image-classification recipe.

    A pretrained model's own image processor is used where it has one. Otherwise `Pixels` fits the images to the
    configuration; a model from scratch takes size and channels from the first training image where its
    configuration leaves them open.

    Raises:
        RecipeError: The model cannot be built, its images are not square, or are smaller than one of its patches.
    """
    from transformers import AutoModelForImageClassification

    height, channels = _shape(data.train[0][0])
    config = build_config(recipe.model, data, default_type="vit", image_size=height, num_channels=channels)
    _check_patches(config)
    model = build_model(AutoModelForImageClassification, recipe.model, config, limited=recipe.shared)
    processor = load_image_processor(recipe.model)
    extra_files = {}
    if processor is None:
        size = getattr(config, "image_size", height)
        if not isinstance(size, int):
            raise RecipeError(
                f"model.config.image_size: {size} is not one whole number; only square images are supported"
            )
        to_pixels: Any = Pixels(size, getattr(config, "num_channels", channels))
        extra_files["preprocessor_config.json"] = to_pixels.preprocessor_config()
    else:
        to_pixels = _Processor(processor)
    train, evaluation, test = (ImageDataset(examples, to_pixels) for examples in (data.train, data.eval, data.test))
    return Task(model, train, evaluation, test, processing_class=processor, save_with_model=extra_files)


class _Processor:
    """A transformers image processor applied to one image; grey images become RGB, as pretrained models expect."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.grey = len(getattr(processor, "image_mean", None) or "rgb") == 1

    def __call__(self, image: Any) -> Any:
        if hasattr(image, "convert"):
            image = image.convert("L" if self.grey else "RGB")
        array = np.asarray(image)
        if array.ndim == 2:
            array = np.repeat(array[:, :, None], 1 if self.grey else 3, axis=2)
        return self.processor(array, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]


def _check_patches(config: Any) -> None:
    """Refuse patches larger than the images: transformers makes such a model, and fails at the first batch."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if isinstance(size, int) and isinstance(patch, int) and patch > size:
        raise RecipeError(
            f"model.config.patch_size: {patch} is larger than the images of {size} x {size} pixels; make it smaller "
            f"(--model.config.patch_size {max(size // 4, 1)}), or the images larger (--model.config.image_size)"
        )


def _shape(image: Any) -> tuple[int, int]:
    """Return height and channels of a PIL image or an array."""
    if hasattr(image, "convert"):
        return image.height, 1 if image.mode in ("1", "L", "I;16") else 3
    return image.shape[0], 1 if image.ndim == 2 else image.shape[2]
