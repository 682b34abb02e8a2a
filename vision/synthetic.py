"""Networks with random weights and images from noise: for exactness and speed where no checkpoint is at hand.

Quantization only says something about a network whose activations look like a trained one's, so the weights keep the
variance (He et al., 2015), every BatchNorm2d gets its own random scale, shift and statistics that fit its input, every
LayerNorm its own scale and shift, and the images have the 1/f spectrum of photographs.
"""

import numpy as np
import torch
from torch import nn

from intq.vision.models import Architecture, architecture


def random_model(name: str, seed: int = 0) -> nn.Module:
    """The architecture called `name`, in evaluation mode, with random weights and settled statistics.

    The same name and seed give the same network. Raises IntqError when there is no such architecture.
    """
    known = architecture(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = known.build(known.classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.3)
            elif isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0.0, 0.1)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, module.in_features**-0.5)
                nn.init.normal_(module.bias, 0.0, 0.1)
        for name, value in model.named_parameters():
            if name.endswith(("cls_token", "position_embeddings")):  # of the size of a patch's embedding
                nn.init.normal_(value, 0.0, 1.0)
        _settle(model, known, seed)
    return model.eval().requires_grad_(False)


def _settle(model: nn.Module, known: Architecture, seed: int, images: int = 4) -> None:
    """Give each BatchNorm2d the statistics of its input on random images, then move them by some ten per cent.

    A trained network's statistics never fit one batch exactly, and a network whose means are all zero after
    normalisation would hide mistakes in folding.
    """
    normalisations = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not normalisations:
        return
    momenta = [module.momentum for module in normalisations]
    for module in normalisations:
        module.momentum = 1.0  # running statistics = this batch's
    pixels = known.preprocess.normalize(random_images(images, known.size, seed, known.preprocess.channels))
    with torch.no_grad():
        model.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        for module, momentum in zip(normalisations, momenta, strict=True):
            module.momentum = momentum
            module.running_mean += 0.1 * module.running_var.sqrt() * torch.randn_like(module.running_mean)
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.9, 1.2)


def random_images(n: int, size: tuple[int, int], seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8 images (n, height, width, channels) whose amplitude spectrum falls as 1/f, as photographs' does.

    The channels share most of their structure, and brightness and contrast vary from image to image, up to clipping.
    """
    generator = np.random.default_rng(seed)
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / max(size))
    amplitude[0, 0] = 0  # brightness is drawn below

    def texture(count: int) -> np.ndarray:  # (n, count, height, width), unit variance
        noise = generator.standard_normal((n, count, height, width))
        field = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=size)
        return field / field.std(axis=(2, 3), keepdims=True)

    shared, own = texture(1), texture(channels)
    brightness = generator.uniform(60, 190, (n, 1, 1, 1)) + generator.normal(0, 20, (n, channels, 1, 1))
    contrast = generator.uniform(25, 75, (n, 1, 1, 1))
    images = brightness + contrast * (0.9 * shared + 0.45 * own)
    return np.ascontiguousarray(images.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
