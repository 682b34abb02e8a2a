"""Labelled images for fine-tuning: shifted and mirrored at random, cross entropy as the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intq.errors import IntqError
from intq.vision.data import Dataset

SHIFT = 14  # a picture is moved by up to this part of its side


@dataclass(frozen=True)
class Training:
    """Batches of a labelled data set as :class:`intq.finetune.Data` describes them."""

    dataset: Dataset
    mirror: bool = True
    shift: bool = True

    def __post_init__(self) -> None:
        if not self.dataset.labelled:
            raise IntqError(
                f"{self.dataset.name} has no labels to train on: expected one folder for each class, or idx"
            )

    @property
    def size(self) -> int:
        return len(self.dataset)

    def order(self, batch: int, generator: np.random.Generator) -> list[np.ndarray]:
        whole = generator.permutation(self.size)
        return [whole[at : at + batch] for at in range(0, max(1, self.size - batch + 1), batch)]

    def batch(self, chosen: np.ndarray, generator: np.random.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
        pixels = np.stack([self.dataset.pixels(int(index)) for index in chosen])  # (n, height, width, channels)
        if self.mirror:
            flipped = generator.random(len(pixels)) < 0.5
            pixels[flipped] = pixels[flipped, :, ::-1]
        if self.shift:
            pixels = _shifted(pixels, generator)
        labels = self.dataset.labels[self.dataset.indices[chosen]]
        return (torch.from_numpy(np.ascontiguousarray(pixels)),), torch.from_numpy(labels)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(output, targets)

    def kept(self, output: Tensor, targets: Tensor) -> None:
        return None


def _shifted(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each picture moved on its own; what comes in repeats the edge."""
    n, height, width, _ = pixels.shape
    dy, dx = height // SHIFT, width // SHIFT
    top, left = (generator.integers(-d, d + 1, (n, 1)) for d in (dy, dx))
    rows = (np.arange(height) + top).clip(0, height - 1)  # (n, height)
    columns = (np.arange(width) + left).clip(0, width - 1)
    return pixels[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
