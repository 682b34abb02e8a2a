"""Images to calibrate a trained classifier on where there are none: shapes that hide each other, changed to fit it.

The start is the dead leaves model (Lee, Mumford and Huang 2001, "Occlusion models for natural images"): shapes of one
brightness each, whose sizes ``r`` are as frequent as ``r ** -3``, fall upon each other. It has what photographs have
and noise of the same spectrum has not, edges, without which the first layers' channels stay silent. What an
EfficientNet-Lite0 does beyond the ranges seen has a power of -11 dB with noise, -18 dB with leaves and -27 dB with
crops of other photos (32 images each): :func:`intq.zero_shot.distill` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from intq.vision.preprocess import Preprocess
from intq.vision.synthetic import random_images
from intq.zero_shot import Made, made_for

MOST = 64  # images: each is as much work as some thirty of the calibration itself
LEAVES, LARGE = 100, 5  # shapes an image; so many of them at its back are large, that little of it stays bare
SMALLEST = 2.0  # pixels from a shape's middle to its edge


def images_for(
    model: nn.Module,
    preprocess: Preprocess,
    size: tuple[int, int],
    samples: int,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Made:
    """uint8 images (n, height, width, channels), at most MOST, to calibrate a trained network on, made without data.

    Whatever the descent does, they stay within what pixels can be.
    """
    made = made_for(
        FromPixels(model, preprocess),
        torch.from_numpy(dead_leaves(min(samples, MOST), size, seed, preprocess.channels)).permute(0, 3, 1, 2),
        "images of random shapes",
        limits=(0, 255),
        progress=progress,
    )
    return replace(made, samples=made.samples.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())


def dead_leaves(n: int, size: tuple[int, int], seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8 images (n, height, width, channels) of ellipses and rectangles before each other, under uneven light."""
    generator = np.random.default_rng(seed)
    largest = max(size) / 2
    images = np.empty((n, *size, channels), np.float32)
    for image in images:
        image[:] = generator.uniform(20, 235)
        radii = 1 / np.sqrt(generator.uniform(largest**-2, SMALLEST**-2, LEAVES))  # as frequent as r ** -3
        radii[:LARGE] = generator.uniform(largest / 4, largest, LARGE)
        for radius in radii:
            _draw_leaf(image, radius, generator)
    light = random_images(n, size, seed, channels).astype(np.float32)
    light -= light.mean((1, 2), keepdims=True)
    images += generator.uniform(0, 1, (n, 1, 1, 1)).astype(np.float32) * light
    return images.round().clip(0, 255).astype(np.uint8)


def _draw_leaf(image: np.ndarray, radius: float, generator: np.random.Generator) -> None:
    """An ellipse or a rectangle, turned and stretched, somewhere in the image."""
    height, width, channels = image.shape
    stretch, angle = np.exp(generator.uniform(-0.7, 0.7)), generator.uniform(0, np.pi)
    y, x = generator.uniform(0, height), generator.uniform(0, width)
    reach = int(3 * radius) + 1  # sqrt(2) exp(0.7) radii at most
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    part = image[top : int(y) + reach, left : int(x) + reach]
    down = np.arange(top, top + part.shape[0])[:, None] - y
    right = np.arange(left, left + part.shape[1])[None] - x
    along = (right * np.cos(angle) + down * np.sin(angle)) * stretch / radius
    across = (down * np.cos(angle) - right * np.sin(angle)) / stretch / radius
    round_ = generator.random() < 0.5
    inside = along**2 + across**2 < 1 if round_ else np.maximum(np.abs(along), np.abs(across)) < 1
    part[inside] = generator.uniform(0, 255) + generator.normal(0, 30, channels)


class FromPixels(nn.Module):
    """Pixels (n, channels, height, width), 0 to 255, to what the model makes of them normalised."""

    def __init__(self, model: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model((pixels / 255 - self.mean) / self.std)
