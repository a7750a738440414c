"""Images to tensors, and the preprocessor_config.json that makes transformers do the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oldest import grey

from hf_sharpness.tasks.pixels import Pixels


def images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_grey_array():
    image = images((8, 8))
    result = Pixels(8, 1)(image)
    assert result.shape == (1, 8, 8)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0].numpy(), (image / 255 - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (28, 28), (5, 7, 3)])
def test_any_image_fits_any_model(shape, channels):
    result = Pixels(8, channels)(images(shape))
    assert result.shape == (channels, 8, 8)
    assert result.min() >= -1
    assert result.max() <= 1


def test_channels_are_kept_in_order():
    image = images((8, 8, 3))
    np.testing.assert_allclose(Pixels(8, 3)(image).numpy(), image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_saved_processor_does_the_same(tmp_path, channels, mode):
    pil = pytest.importorskip("PIL.Image")
    from transformers import AutoImageProcessor

    ours = Pixels(8, channels)
    (tmp_path / "preprocessor_config.json").write_text(ours.preprocessor_config())
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = pil.fromarray(images((8, 8) if channels == 1 else (8, 8, 3)), mode=mode)
    theirs = processor(grey(processor, image), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours(image), theirs)

    large = pil.fromarray(np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8).convert(mode)
    theirs = processor(grey(processor, large), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours(large), theirs, atol=0.02, rtol=0)  # PIL rounds to whole grey levels
